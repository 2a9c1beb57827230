//! One key and the one algorithm that it is for. The JWT crate is named here and nowhere else.
//!
//! Whether a key fits its algorithm is found out when it is loaded, not when the first token comes: its type, its curve
//! and its size. What a token says of itself never changes what a key is used for. Start at [`Key`].

use aws_lc_rs::signature as curves;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{AlgorithmFamily, DecodingKey, EncodingKey, Header, crypto};
use serde::Deserialize;

use super::claims::object;

pub(in crate::gateway) use jsonwebtoken::Algorithm;

/// The longest key id, in bytes; in tokens, in configuration and in JWK sets.
pub(in crate::gateway) const MAX_KID_BYTES: usize = 128;

/// A key that checks signatures of one algorithm.
pub(in crate::gateway) struct Key {
    kid: Option<Box<str>>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// Why a key cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::gateway) enum KeyError {
    #[error("is empty")]
    Empty,
    #[error("is a PEM document, which is no shared secret: put a public key's file into `tokens.public_keys`")]
    PemAsSecret,
    #[error("has {bytes} bytes, more than {MAX_KID_BYTES}")]
    Kid { bytes: usize },
    #[error("is a private key; the server needs only the public one (`openssl pkey -pubout`)")]
    Private,
    #[error("is no public key in PEM (`-----BEGIN PUBLIC KEY-----`)")]
    NoPem,
    #[error("is no key for {algorithm:?}, or a weak one")]
    Unfit { algorithm: Algorithm },
    #[error("is no key for checking signatures")]
    OtherUse,
    #[error("is of a type or an algorithm that is not supported")]
    Unsupported,
}

/// The algorithm that configurations and tokens call `name`.
pub(in crate::gateway) fn algorithm(name: &str) -> Option<Algorithm> {
    name.parse().ok()
}

/// Whether keys of `algorithm` are shared secrets.
pub(in crate::gateway) fn is_symmetric(algorithm: Algorithm) -> bool {
    algorithm.family() == AlgorithmFamily::Hmac
}

/// The shortest secret that is as hard to guess as the algorithm's tags (RFC 7518, 3.2), in bytes.
pub(in crate::gateway) fn strong_secret_bytes(algorithm: Algorithm) -> usize {
    match algorithm {
        Algorithm::HS512 => 64,
        Algorithm::HS384 => 48,
        _ => 32,
    }
}

/// `claims` as a token signed with HS256.
pub(super) fn sign_hs256(secret: &str, claims: &serde_json::Value) -> Result<String, String> {
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes()))
        .map_err(|error| error.to_string())
}

impl Key {
    /// A shared secret; it has no id.
    pub(in crate::gateway) fn from_secret(secret: &str, algorithm: Algorithm) -> Result<Self, KeyError> {
        match (secret.is_empty(), secret.contains("-----BEGIN"), is_symmetric(algorithm)) {
            (true, ..) => Err(KeyError::Empty),
            (_, true, _) => Err(KeyError::PemAsSecret),
            (.., false) => Err(KeyError::Unfit { algorithm }),
            _ => Ok(Self { kid: None, algorithm, key: DecodingKey::from_secret(secret.as_bytes()) }),
        }
    }

    /// A public key from the text of its file.
    pub(in crate::gateway) fn from_pem(kid: &str, algorithm: Algorithm, pem: &str) -> Result<Self, KeyError> {
        let kid = checked_kid(kid)?;
        if pem.contains("PRIVATE KEY-----") {
            return Err(KeyError::Private);
        }
        // The crate below takes the first bit string of a certificate for its key; only bare keys are let through.
        if !pem.contains("-----BEGIN PUBLIC KEY-----") && !pem.contains("-----BEGIN RSA PUBLIC KEY-----") {
            return Err(KeyError::NoPem);
        }
        let key = match algorithm.family() {
            AlgorithmFamily::Hmac => return Err(KeyError::Unfit { algorithm }),
            AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(pem.as_bytes()),
            AlgorithmFamily::Ec => DecodingKey::from_ec_pem(pem.as_bytes()),
            AlgorithmFamily::Ed => DecodingKey::from_ed_pem(pem.as_bytes()),
        };
        let unfit = || KeyError::Unfit { algorithm };
        let key = key.map_err(|_| unfit())?;
        let fits = key.try_get_as_bytes().is_ok_and(|bytes| fits(algorithm, bytes));
        fits.then_some(Self { kid: Some(kid), algorithm, key }).ok_or_else(unfit)
    }

    /// The keys that an entry of a JWK set stands for: one, or one for each RSA algorithm if it names none.
    ///
    /// Shared secrets and private keys are no keys for us: whoever reads the set could sign with them.
    pub(in crate::gateway) fn from_jwk(json: &str) -> Result<Vec<Self>, KeyError> {
        let jwk: Jwk = object(json).ok_or(KeyError::Unsupported)?;
        if jwk.d.is_some() || jwk.k.is_some() {
            return Err(KeyError::Private);
        }
        let other_use = jwk.purpose.as_deref().is_some_and(|purpose| purpose != "sig");
        if other_use || jwk.key_ops.as_ref().is_some_and(|ops| ops.iter().all(|op| op != "verify")) {
            return Err(KeyError::OtherUse);
        }
        let kid = jwk.kid.as_deref().map(checked_kid).transpose()?;
        let (key, possible) = jwk.key()?;
        let algorithms = match jwk.alg.as_deref() {
            None => possible.to_vec(),
            Some(name) => match possible.iter().find(|possible| algorithm(name) == Some(**possible)) {
                Some(named) => vec![*named],
                None => return Err(KeyError::Unsupported),
            },
        };
        Ok(algorithms.into_iter().map(|algorithm| Self { kid: kid.clone(), algorithm, key: key.clone() }).collect())
    }

    /// Whether this is the key for a token with `algorithm` and `kid`. A token that names no key may mean any.
    pub(in crate::gateway) fn is_meant(&self, algorithm: Algorithm, kid: Option<&str>) -> bool {
        self.algorithm == algorithm && kid.is_none_or(|kid| self.kid.as_deref() == Some(kid))
    }

    /// Whether `signature`, in base64url, is this key's for `message`.
    pub(super) fn verifies(&self, message: &str, signature: &str) -> bool {
        crypto::verify(signature, message.as_bytes(), &self.key, self.algorithm).unwrap_or(false)
    }
}

fn checked_kid(kid: &str) -> Result<Box<str>, KeyError> {
    match kid.len() {
        0 => Err(KeyError::Empty),
        bytes if MAX_KID_BYTES < bytes => Err(KeyError::Kid { bytes }),
        _ => Ok(kid.into()),
    }
}

/// Whether `key` is a point on the algorithm's curve, or an RSA key of a size that is neither weak nor slow.
fn fits(algorithm: Algorithm, key: &[u8]) -> bool {
    let parameters: &'static dyn curves::VerificationAlgorithm = match algorithm.family() {
        AlgorithmFamily::Hmac => return false,
        AlgorithmFamily::Rsa => {
            // The size is checked at each signature only, by the library.
            return aws_lc_rs::rsa::PublicKey::from_der(key)
                .is_ok_and(|key| modulus_fits(&curves::RsaPublicKeyComponents::<Vec<u8>>::from(&key).n));
        }
        AlgorithmFamily::Ec if algorithm == Algorithm::ES256 => &curves::ECDSA_P256_SHA256_FIXED,
        AlgorithmFamily::Ec => &curves::ECDSA_P384_SHA384_FIXED,
        AlgorithmFamily::Ed => &curves::ED25519,
    };
    curves::ParsedPublicKey::new(parameters, key).is_ok()
}

/// 2048 bits, below which RSA is refused everywhere today, and 4096, above which a check takes too long for a shard.
fn modulus_fits(modulus: &[u8]) -> bool {
    (256..=512).contains(&modulus.len())
}

/// An entry of a JWK set (RFC 7517, 4; RFC 7518, 6; RFC 8037, 2).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    /// The private part of a key pair.
    d: Option<serde::de::IgnoredAny>,
    /// A shared secret.
    k: Option<serde::de::IgnoredAny>,
}

impl Jwk {
    /// The key, and the algorithms that a key of this type can be for.
    fn key(&self) -> Result<(DecodingKey, &'static [Algorithm]), KeyError> {
        use Algorithm::{ES256, ES384, EdDSA, PS256, PS384, PS512, RS256, RS384, RS512};
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => Ok((self.rsa()?, &[RS256, RS384, RS512, PS256, PS384, PS512])),
            ("EC", Some("P-256")) => Ok((self.point(ES256, 32)?, &[ES256])),
            ("EC", Some("P-384")) => Ok((self.point(ES384, 48)?, &[ES384])),
            ("OKP", Some("Ed25519")) => Ok((self.edwards()?, &[EdDSA])),
            _ => Err(KeyError::Unsupported),
        }
    }

    fn rsa(&self) -> Result<DecodingKey, KeyError> {
        let unfit = KeyError::Unfit { algorithm: Algorithm::RS256 };
        let (Some(n), Some(e)) = (decoded(&self.n), decoded(&self.e)) else { return Err(unfit) };
        // Some issuers write the sign byte of DER's integers.
        let n = n.strip_prefix(&[0]).unwrap_or(&n);
        let components = curves::RsaPublicKeyComponents { n, e: &e[..] };
        match modulus_fits(n) && components.to_parsed_public_key(&curves::RSA_PKCS1_2048_8192_SHA256).is_ok() {
            true => Ok(DecodingKey::from_rsa_raw_components(n, &e)),
            false => Err(unfit),
        }
    }

    fn point(&self, algorithm: Algorithm, coordinate_bytes: usize) -> Result<DecodingKey, KeyError> {
        let mut point = vec![4];
        for coordinate in [&self.x, &self.y] {
            let coordinate = decoded(coordinate).filter(|bytes| bytes.len() == coordinate_bytes);
            point.extend(coordinate.ok_or(KeyError::Unfit { algorithm })?);
        }
        match fits(algorithm, &point) {
            true => Ok(DecodingKey::from_ec_der(&point)),
            false => Err(KeyError::Unfit { algorithm }),
        }
    }

    fn edwards(&self) -> Result<DecodingKey, KeyError> {
        let x = decoded(&self.x).filter(|x| x.len() == 32 && fits(Algorithm::EdDSA, x));
        x.map(|x| DecodingKey::from_ed_der(&x)).ok_or(KeyError::Unfit { algorithm: Algorithm::EdDSA })
    }
}

fn decoded(text: &Option<String>) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text.as_deref()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::testing::{Issuer, PUBLIC_ALGORITHMS, pem};

    #[test]
    fn a_key_that_does_not_fit_its_algorithm_is_refused_when_it_is_loaded() {
        let issuer = Issuer::shared();
        let load = |name: &str, pem: &str| Key::from_pem("k", algorithm(name).unwrap(), pem).map(|_| ());
        let unfit = |name| Err(KeyError::Unfit { algorithm: algorithm(name).unwrap() });
        for name in PUBLIC_ALGORITHMS {
            assert_eq!(load(name, &issuer.pem(name)), Ok(()), "{name}");
            for other in ["RS256", "ES256", "ES384", "EdDSA"] {
                let same_type = other == name || (name.starts_with(['R', 'P']) && other == "RS256");
                assert_eq!(load(name, &issuer.pem(other)).is_ok(), same_type, "a key for {other} as one for {name}");
            }
            assert_eq!(load(name, &pem("PUBLIC KEY", b"nonsense")), unfit(name));
            assert_eq!(load(name, ""), Err(KeyError::NoPem));
            assert_eq!(load(name, &issuer.private_pem()), Err(KeyError::Private));
            assert_eq!(load(name, &pem("CERTIFICATE", b"x")), Err(KeyError::NoPem));
        }
        assert_eq!(load("HS256", &issuer.pem("RS256")), unfit("HS256"));
        let secret = |text: &str| Key::from_secret(text, algorithm("HS256").unwrap()).map(|_| ());
        assert_eq!(secret(&issuer.pem("RS256")), Err(KeyError::PemAsSecret));
        assert_eq!(secret(""), Err(KeyError::Empty));
        assert!(Key::from_secret("x", algorithm("RS256").unwrap()).is_err());
        let kid = |kid: &str| Key::from_pem(kid, algorithm("ES256").unwrap(), &issuer.pem("ES256")).map(|_| ());
        assert_eq!(kid(&"k".repeat(129)), Err(KeyError::Kid { bytes: 129 }));
        assert_eq!(kid(""), Err(KeyError::Empty));
        let large = Issuer::with_rsa(aws_lc_rs::rsa::KeySize::Rsa4096);
        assert_eq!(load("RS256", &large.pem("RS256")), Ok(()));
    }
}
