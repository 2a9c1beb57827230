//! What the gateway's tests share: an issuer with a key of every kind, and a server on loopback that misbehaves.
//!
//! The issuer signs with aws-lc-rs itself, not with the crate that checks.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, OnceLock},
};

use aws_lc_rs::{
    encoding::AsDer,
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

pub(super) const SECRET: &str = "a secret of forty bytes, for tests only!";
pub(super) const PUBLIC_ALGORITHMS: [&str; 9] =
    ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];

pub(super) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Somebody who signs tokens.
pub(super) struct Issuer {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

impl Issuer {
    pub(super) fn new() -> Self {
        Self::with_rsa(KeySize::Rsa2048)
    }

    pub(super) fn with_rsa(size: KeySize) -> Self {
        Self {
            rsa: RsaKeyPair::generate(size).unwrap(),
            p256: EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            p384: EcdsaKeyPair::generate(&signature::ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(),
            ed: Ed25519KeyPair::generate().unwrap(),
        }
    }

    /// One for all tests: RSA keys take long to make.
    pub(super) fn shared() -> &'static Self {
        static ISSUER: OnceLock<Issuer> = OnceLock::new();
        ISSUER.get_or_init(Self::new)
    }

    /// A token whose signature is of the kind that its header's `alg` says.
    pub(super) fn token(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
        let signature = self.sign(header["alg"].as_str().unwrap(), &message);
        format!("{message}.{}", base64url(signature))
    }

    pub(super) fn sign(&self, algorithm: &str, message: &str) -> Vec<u8> {
        let (random, message) = (SystemRandom::new(), message.as_bytes());
        let rsa: &'static dyn signature::RsaEncoding = match algorithm {
            "ES256" => return self.p256.sign(&random, message).unwrap().as_ref().to_vec(),
            "ES384" => return self.p384.sign(&random, message).unwrap().as_ref().to_vec(),
            "EdDSA" => return self.ed.sign(message).as_ref().to_vec(),
            "RS256" => &signature::RSA_PKCS1_SHA256,
            "RS384" => &signature::RSA_PKCS1_SHA384,
            "RS512" => &signature::RSA_PKCS1_SHA512,
            "PS256" => &signature::RSA_PSS_SHA256,
            "PS384" => &signature::RSA_PSS_SHA384,
            "PS512" => &signature::RSA_PSS_SHA512,
            other => panic!("no key for {other}"),
        };
        let mut signature = vec![0; self.rsa.public_modulus_len()];
        self.rsa.sign(rsa, &random, message, &mut signature).unwrap();
        signature
    }

    pub(super) fn pem(&self, algorithm: &str) -> String {
        let der = match algorithm {
            "ES256" => self.p256.public_key().as_der().unwrap(),
            "ES384" => self.p384.public_key().as_der().unwrap(),
            "EdDSA" => self.ed.public_key().as_der().unwrap(),
            _ => self.rsa.public_key().as_der().unwrap(),
        };
        pem("PUBLIC KEY", der.as_ref())
    }

    /// The private key, PKCS#8, of the RSA pair.
    pub(super) fn private_pem(&self) -> String {
        let der: aws_lc_rs::encoding::Pkcs8V1Der<'static> = self.rsa.as_der().unwrap();
        pem("PRIVATE KEY", der.as_ref())
    }

    pub(super) fn jwk(&self, algorithm: &str, kid: &str) -> Value {
        let point = |curve: &str, point: &[u8]| {
            let (x, y) = point[1..].split_at(point.len() / 2);
            json!({"kty": "EC", "crv": curve, "x": base64url(x), "y": base64url(y)})
        };
        let mut jwk = match algorithm {
            "ES256" => point("P-256", self.p256.public_key().as_ref()),
            "ES384" => point("P-384", self.p384.public_key().as_ref()),
            "EdDSA" => json!({"kty": "OKP", "crv": "Ed25519", "x": base64url(self.ed.public_key())}),
            _ => {
                let parts = signature::RsaPublicKeyComponents::<Vec<u8>>::from(self.rsa.public_key());
                json!({"kty": "RSA", "n": base64url(parts.n), "e": base64url(parts.e)})
            }
        };
        jwk["alg"] = algorithm.into();
        jwk["kid"] = kid.into();
        jwk["use"] = "sig".into();
        jwk
    }
}

pub(super) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// A token with HMAC, its parts as they are given.
pub(super) fn hmac_token(algorithm: &str, secret: &[u8], header: &str, claims: &str) -> String {
    let kind = match algorithm {
        "HS384" => hmac::HMAC_SHA384,
        "HS512" => hmac::HMAC_SHA512,
        _ => hmac::HMAC_SHA256,
    };
    let message = format!("{}.{}", base64url(header), base64url(claims));
    let tag = hmac::sign(&hmac::Key::new(kind, secret), message.as_bytes());
    format!("{message}.{}", base64url(tag))
}

/// What the server does with the next requests.
#[derive(Clone)]
pub(super) enum Answer {
    /// 200 with this body.
    Body(String),
    /// A whole answer, head included.
    Raw(String),
    /// 200 and zeros without end.
    Endless,
    /// Nothing.
    Hang,
    /// The end of the connection.
    Close,
}

/// A server on loopback that counts its requests.
pub(super) struct FakeServer {
    pub(super) address: SocketAddr,
    answer: Arc<Mutex<Answer>>,
    requests: watch::Sender<usize>,
    task: JoinHandle<()>,
}

impl FakeServer {
    pub(super) async fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (answer, requests) = (Arc::new(Mutex::new(answer)), watch::Sender::new(0));
        let (answers, counter) = (Arc::clone(&answer), requests.clone());
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let answer = answers.lock().unwrap().clone();
                counter.send_modify(|count| *count += 1);
                tokio::spawn(serve(socket, answer));
            }
        });
        Self { address, answer, requests, task }
    }

    pub(super) async fn with_keys(keys: &[Value]) -> Self {
        Self::start(Answer::Body(json!({ "keys": keys }).to_string())).await
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/jwks.json", self.address)
    }

    pub(super) fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    pub(super) fn set_keys(&self, keys: &[Value]) {
        self.set(Answer::Body(json!({ "keys": keys }).to_string()));
    }

    /// Connections so far; each stands for one request.
    pub(super) fn requests(&self) -> usize {
        *self.requests.borrow()
    }

    pub(super) async fn wait_for_requests(&self, count: usize) {
        let mut requests = self.requests.subscribe();
        let done = requests.wait_for(|requests| count <= *requests);
        tokio::time::timeout(std::time::Duration::from_secs(60), done).await.expect("the requests came").unwrap();
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut socket: TcpStream, answer: Answer) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match socket.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return,
        }
    }
    let ok = "HTTP/1.1 200 OK\r\nConnection: close\r\n";
    match answer {
        Answer::Body(body) => {
            let _ = socket.write_all(format!("{ok}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
        }
        Answer::Raw(raw) => {
            let _ = socket.write_all(raw.as_bytes()).await;
        }
        Answer::Endless => {
            let _ = socket.write_all(format!("{ok}\r\n").as_bytes()).await;
            while socket.write_all(&[b'0'; 65_536]).await.is_ok() {}
        }
        Answer::Hang => std::future::pending().await,
        Answer::Close => {}
    }
}
