# syntax=docker/dockerfile:1
# `docker build -t fanwire .`, then
# `docker run --rm -p 8080:8080 -e FANWIRE_SECRET="$(openssl rand -hex 32)" --ulimit nofile=65536:65536 fanwire`

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# The caches stay with the builder, so a second build compiles only what changed; the binary has to leave them.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin fanwire \
    && strip --strip-debug target/release/fanwire -o /fanwire

# glibc, libgcc and root certificates (for JWKS over https); no shell, no package manager.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=build /fanwire /usr/local/bin/fanwire
# In a container every address is its own. Without FANWIRE_SECRET, or keys in a file, this refuses to start: development
# mode is for loopback.
ENV FANWIRE_LISTEN=0.0.0.0:8080 \
    FANWIRE_METRICS_LISTEN=0.0.0.0:9464 \
    FANWIRE_LOG__FORMAT=json
EXPOSE 8080 9464
USER nonroot
STOPSIGNAL SIGTERM
# No HEALTHCHECK: there is no shell or curl to run one. Ask GET /readyz from outside, as fly.toml does.
ENTRYPOINT ["/usr/local/bin/fanwire"]
