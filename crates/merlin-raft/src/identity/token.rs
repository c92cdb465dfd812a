//! Join tokens as operators carry them.
//!
//! ```text
//! mjt1.<base64url, no padding>
//!
//! version 1 | cluster id 16 | sha256 of the CA's certificate 32 | token id 8 | secret 16
//!   | count 1 | count x { 4: IPv4 4 or 6: IPv6 16, port 2 }   | CRC-32C of all before 4
//! ```
//! Numbers are big-endian. The checksum finds what a terminal's line break or a hand did to it,
//! before anything is sent; what makes a token genuine is its secret.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::digest::{CaFingerprint, SecretHash};
use super::key::random_bytes;
use super::name::ClusterId;

const PREFIX: &str = "mjt1.";
const VERSION: u8 = 1;
const CHECKSUM_LEN: usize = 4;

/// Names a token in lists and logs; not secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub [u8; 8]);

impl TokenId {
    pub fn random() -> Self {
        Self(random_bytes())
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenId({self})")
    }
}

/// The text is not a token's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token id has 16 hexadecimal digits")]
pub struct InvalidTokenId;

impl FromStr for TokenId {
    type Err = InvalidTokenId;

    fn from_str(text: &str) -> Result<Self, InvalidTokenId> {
        if text.len() != 16 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(InvalidTokenId);
        }
        u64::from_str_radix(text, 16)
            .map(|id| Self(id.to_be_bytes()))
            .map_err(|_| InvalidTokenId)
    }
}

/// What proves that a node was given the token. Kept by no one but the token itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub(super) [u8; 16]);

impl Secret {
    pub fn random() -> Self {
        Self(random_bytes())
    }

    pub fn hash(&self) -> SecretHash {
        SecretHash::of(&self.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A new node's permission to join: whom to trust, what to say, and where.
///
/// Its `Display` is the token itself, so a token is shown where it is created and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub cluster: ClusterId,
    pub ca: CaFingerprint,
    pub id: TokenId,
    pub secret: Secret,
    /// Members to ask, in this order.
    pub addresses: Vec<SocketAddr>,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A token is one line to paste: more members than fit are not needed to reach one.
        let addresses = &self.addresses[..self.addresses.len().min(usize::from(u8::MAX))];
        let mut bytes = vec![VERSION];
        bytes.extend(self.cluster.as_bytes());
        bytes.extend(self.ca.0);
        bytes.extend(self.id.0);
        bytes.extend(self.secret.0);
        bytes.push(u8::try_from(addresses.len()).expect("cut to what a byte can count"));
        for address in addresses {
            match address.ip() {
                IpAddr::V4(ip) => {
                    bytes.push(4);
                    bytes.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    bytes.push(6);
                    bytes.extend(ip.octets());
                }
            }
            bytes.extend(address.port().to_be_bytes());
        }
        bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// Why a text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseTokenError {
    #[error(
        "this is not a join token: a token begins with `{PREFIX}`, \
         as `merlin cluster token create` prints it"
    )]
    NotAToken,
    #[error("the token is mistyped or incomplete; copy the whole line again")]
    Mistyped,
    #[error("the token was made by a newer merlin (token version {0}); upgrade this node first")]
    Version(u8),
}

impl FromStr for Token {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let encoded = text
            .trim()
            .strip_prefix(PREFIX)
            .ok_or(ParseTokenError::NotAToken)?;
        let bytes = URL_SAFE_NO_PAD
            .decode(encoded)
            .map_err(|_| ParseTokenError::Mistyped)?;
        let (content, checksum) = bytes
            .split_last_chunk::<CHECKSUM_LEN>()
            .ok_or(ParseTokenError::Mistyped)?;
        if crc32c::crc32c(content) != u32::from_be_bytes(*checksum) {
            return Err(ParseTokenError::Mistyped);
        }
        match content.split_first() {
            Some((&VERSION, rest)) => parse_v1(rest).ok_or(ParseTokenError::Mistyped),
            Some((&version, _)) => Err(ParseTokenError::Version(version)),
            None => Err(ParseTokenError::Mistyped),
        }
    }
}

fn parse_v1(bytes: &[u8]) -> Option<Token> {
    let (cluster, bytes) = bytes.split_first_chunk()?;
    let (ca, bytes) = bytes.split_first_chunk()?;
    let (id, bytes) = bytes.split_first_chunk()?;
    let (secret, bytes) = bytes.split_first_chunk()?;
    let (&count, mut bytes) = bytes.split_first()?;
    let mut addresses = Vec::with_capacity(count.into());
    for _ in 0..count {
        let (&family, rest) = bytes.split_first()?;
        let (ip, rest): (IpAddr, _) = match family {
            4 => rest
                .split_first_chunk::<4>()
                .map(|(ip, rest)| ((*ip).into(), rest))?,
            6 => rest
                .split_first_chunk::<16>()
                .map(|(ip, rest)| ((*ip).into(), rest))?,
            _ => return None,
        };
        let (port, rest) = rest.split_first_chunk()?;
        addresses.push(SocketAddr::new(ip, u16::from_be_bytes(*port)));
        bytes = rest;
    }
    bytes.is_empty().then_some(Token {
        cluster: ClusterId::from_bytes(*cluster),
        ca: CaFingerprint(*ca),
        id: TokenId(*id),
        secret: Secret(*secret),
        addresses,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token() -> Token {
        Token {
            cluster: ClusterId::from_bytes([1; 16]),
            ca: CaFingerprint([2; 32]),
            id: TokenId([3; 8]),
            secret: Secret([4; 16]),
            addresses: vec![
                "192.0.2.1:4284".parse().unwrap(),
                "[2001:db8::1]:4284".parse().unwrap(),
            ],
        }
    }

    #[test]
    fn a_token_keeps_its_spelling_between_versions() {
        let text = "mjt1.AQEBAQEBAQEBAQEBAQEBAQECAgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgMDAwMDA\
                    wMDBAQEBAQEBAQEBAQEBAQEBAIEwAACARC8BiABDbgAAAAAAAAAAAAAAAEQvLDoW1g";
        assert_eq!(token().to_string(), text);
        assert_eq!(text.parse(), Ok(token()));
    }

    #[test]
    fn white_space_around_a_token_does_not_matter() {
        assert_eq!(format!("  {}\n", token()).parse(), Ok(token()));
    }

    #[test]
    fn something_else_is_said_not_to_be_a_token() {
        for text in ["", "K10abc::server:x", "SWMTKN-1-abc", "mjt2.AAAA"] {
            assert_eq!(text.parse::<Token>(), Err(ParseTokenError::NotAToken));
        }
    }

    #[test]
    fn a_token_of_a_later_version_is_named_as_such() {
        let mut bytes = vec![9, 1, 2, 3];
        bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
        let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
        assert_eq!(text.parse::<Token>(), Err(ParseTokenError::Version(9)));
    }

    #[test]
    fn every_cut_and_every_changed_character_is_found() {
        let text = token().to_string();
        for end in PREFIX.len()..text.len() {
            assert_eq!(
                text[..end].parse::<Token>(),
                Err(ParseTokenError::Mistyped),
                "cut at {end}"
            );
        }
        for at in PREFIX.len()..text.len() {
            for other in ["A", "z", "-", "!", "é"] {
                let mut changed = text.clone();
                changed.replace_range(at..=at, other);
                if changed != text {
                    assert_eq!(
                        changed.parse::<Token>(),
                        Err(ParseTokenError::Mistyped),
                        "{other} at {at}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_token_does_not_debug_print_its_secret() {
        let printed = format!("{:?}", token());
        assert!(printed.contains("Secret(..)"), "{printed}");
    }

    #[test]
    fn token_ids_are_written_in_hexadecimal() {
        let id = TokenId([0, 1, 2, 3, 4, 5, 6, 0xff]);
        assert_eq!(id.to_string(), "00010203040506ff");
        assert_eq!("00010203040506ff".parse(), Ok(id));
        for text in [
            "",
            "+0010203040506ff",
            "00010203040506f",
            "00010203040506fg",
        ] {
            assert_eq!(text.parse::<TokenId>(), Err(InvalidTokenId));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn a_token_reads_back_as_it_was_written(
            cluster: [u8; 16],
            ca: [u8; 32],
            id: [u8; 8],
            secret: [u8; 16],
            addresses: Vec<(IpAddr, u16)>,
        ) {
            let token = Token {
                cluster: ClusterId::from_bytes(cluster),
                ca: CaFingerprint(ca),
                id: TokenId(id),
                secret: Secret(secret),
                addresses: addresses.into_iter().map(SocketAddr::from).collect(),
            };
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "(mjt1\\.)?[A-Za-z0-9_-]{0,200}") {
            let _ = text.parse::<Token>();
        }

        #[test]
        fn no_content_with_a_right_checksum_makes_the_parser_panic(mut bytes: Vec<u8>) {
            bytes.insert(0, VERSION);
            bytes.extend(crc32c::crc32c(&bytes).to_be_bytes());
            let _ = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)).parse::<Token>();
        }
    }
}
