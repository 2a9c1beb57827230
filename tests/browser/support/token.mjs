/** Tokens as an application's backend makes them. */
import { createHmac } from 'node:crypto';

export const SECRET = 'a secret for tests, which is long enough';

/** A configuration in which only tokens open anything. */
export const WITH_TOKENS = `
[[app]]
id = "default"
key = "default"
secret = "${SECRET}"
api_keys = ["an API key for tests"]

[namespace.room]
history = { size = 100, ttl = "1h" }
presence = true
show_publisher = true

[namespace.typing]
`;

const ALL = [{ channels: ['room:*', 'typing:*'], do: ['subscribe', 'publish', 'presence', 'history'] }];

export function sign({ sub = 'alice', allow = ALL, seconds = 3600, secret = SECRET, ...claims } = {}) {
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const now = Math.floor(Date.now() / 1000);
  const body = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ sub, iat: now, exp: now + seconds, allow, ...claims })}`;
  return `${body}.${createHmac('sha256', secret).update(body).digest('base64url')}`;
}
