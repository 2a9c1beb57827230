//! Ports for servers that are told which one to use, and that come back on the same one after they were killed.
//!
//! A port found by binding 0 is only free until somebody else gets it, and while a killed server is away any outgoing
//! connection of this machine may. So these lie below the kernel's range for such connections, and each is claimed, over
//! all processes that run these tests, by a UDP socket of the same number: it is given back whatever happens to us.

use std::net::{TcpListener, UdpSocket};

use rand::Rng;

/// Where ports are chosen. [`BUS`] higher is still below 32768, where Linux begins with those of outgoing connections.
const RANGE: std::ops::Range<u16> = 10_000..22_000;

/// How much higher than its own port a node of a Redis cluster listens for the others.
const BUS: u16 = 10_000;

/// A port on 127.0.0.1 that is ours for as long as this lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _claims: Vec<UdpSocket>,
}

impl Port {
    /// One that is free now.
    pub fn claim() -> Self {
        Self::find(&[0])
    }

    /// One that is free now, and the one for a cluster's bus too.
    pub fn claim_with_bus() -> Self {
        Self::find(&[0, BUS])
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    fn find(above: &[u16]) -> Self {
        for _ in 0..1000 {
            let number = rand::rng().random_range(RANGE);
            let claims = above.iter().map(|above| free(number + above));
            if let Some(claims) = claims.collect::<Option<Vec<_>>>() {
                return Self { number, _claims: claims };
            }
        }
        panic!("no port in {RANGE:?} is free");
    }
}

/// The claim to a port, where nobody has it.
fn free(number: u16) -> Option<UdpSocket> {
    let claim = UdpSocket::bind(("127.0.0.1", number)).ok()?;
    TcpListener::bind(("127.0.0.1", number)).ok()?;
    Some(claim)
}

mod tests {
    use super::*;

    #[test]
    fn a_port_is_claimed_once_at_a_time() {
        let port = Port::claim_with_bus();
        assert!(free(port.number()).is_none());
        assert!(free(port.number() + BUS).is_none());
        // The number may be anybody's after this, but hardly at once.
        let number = port.number();
        drop(port);
        assert!(free(number).is_some());
    }

    #[test]
    fn a_port_that_somebody_listens_on_is_not_free() {
        let port = Port::claim();
        let _listener = TcpListener::bind(("127.0.0.1", port.number())).unwrap();
        let number = port.number();
        drop(port);
        assert!(free(number).is_none());
    }
}
