//! Netlink's framing: messages of a buffer, attributes of a message, and how both are written.
//!
//! Numbers are in host order and everything is aligned to four bytes (`netlink(7)`).

/// Bytes the kernel would not send, or that a newer kernel means differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("a netlink message ends early")]
    Message,
    #[error("a netlink attribute ends early")]
    Attribute,
    #[error("{0} is missing")]
    Missing(&'static str),
    #[error("{0} has the wrong length")]
    Length(&'static str),
    #[error("{0} is not an address family IPVS knows")]
    AddressFamily(u16),
    #[error("{0} is not a command of the IPVS family")]
    Command(u8),
}

/// Flags of a request (`include/uapi/linux/netlink.h`).
pub mod flags {
    pub const REQUEST: u16 = 0x001;
    /// The message is one of several; `DONE` follows.
    pub const MULTI: u16 = 0x002;
    pub const ACK: u16 = 0x004;
    /// The table changed while it was being dumped.
    pub const DUMP_INTERRUPTED: u16 = 0x010;
    pub const DUMP: u16 = 0x300;
}

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Types below this one are netlink's own; families start here.
const FIRST_FAMILY: u16 = 16;

const HEADER: usize = 16;
const ATTRIBUTE_HEADER: usize = 4;
/// Top bits of an attribute's type: nested, and network byte order. Both are only hints.
const ATTRIBUTE_TYPE: u16 = 0x3fff;

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

// === reading ===

/// One netlink message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub flags: u16,
    pub sequence: u32,
    pub body: Body<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    /// The outcome of a request: 0, or the error number.
    Outcome(i32),
    /// The end of a dump: 0, or the error number that cut it short.
    Done(i32),
    /// A message of the family with this id.
    Family(u16, &'a [u8]),
    /// Netlink's own business, such as `NLMSG_NOOP`.
    Other,
}

/// The messages of a datagram. Ends after the first malformed one.
#[derive(Clone, Debug)]
pub struct Frames<'a>(&'a [u8]);

impl<'a> Frames<'a> {
    pub fn new(datagram: &'a [u8]) -> Self {
        Self(datagram)
    }

    fn parse(&mut self) -> Option<Frame<'a>> {
        let (header, _) = self.0.split_first_chunk::<HEADER>()?;
        let [l0, l1, l2, l3, t0, t1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let payload = self.0.get(HEADER..length)?;
        let body = match u16::from_ne_bytes([t0, t1]) {
            ERROR => Body::Outcome(error_number(payload)?),
            // Kernels before 4.19 may end a dump without a code.
            DONE => Body::Done(error_number(payload).unwrap_or(0)),
            family if family >= FIRST_FAMILY => Body::Family(family, payload),
            _ => Body::Other,
        };
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some(Frame {
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            body,
        })
    }
}

/// The kernel sends error numbers negated.
fn error_number(payload: &[u8]) -> Option<i32> {
    let code = payload.first_chunk()?;
    Some(i32::from_ne_bytes(*code).saturating_neg())
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let frame = self.parse().ok_or(Malformed::Message);
        if frame.is_err() {
            self.0 = &[];
        }
        Some(frame)
    }
}

/// The attributes of a message or of a nested attribute. Ends after the first malformed one.
#[derive(Clone, Debug)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The last attribute of a type, as the kernel reads them.
    pub fn find(self, kind: u16) -> Result<Option<&'a [u8]>, Malformed> {
        let mut found = None;
        for attribute in self {
            let (this, value) = attribute?;
            if this == kind {
                found = Some(value);
            }
        }
        Ok(found)
    }

    fn parse(&mut self) -> Option<(u16, &'a [u8])> {
        let [l0, l1, t0, t1] = *self.0.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = self.0.get(ATTRIBUTE_HEADER..length)?;
        self.0 = self.0.get(aligned(length)..).unwrap_or_default();
        Some((u16::from_ne_bytes([t0, t1]) & ATTRIBUTE_TYPE, value))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let attribute = self.parse().ok_or(Malformed::Attribute);
        if attribute.is_err() {
            self.0 = &[];
        }
        Some(attribute)
    }
}

/// The value of an attribute that has a fixed size. A longer one is read by its beginning, as the
/// kernel reads it.
pub(super) fn fixed<const N: usize>(
    value: &[u8],
    what: &'static str,
) -> Result<[u8; N], Malformed> {
    value.first_chunk().copied().ok_or(Malformed::Length(what))
}

/// A NUL-terminated name; the terminator may be missing.
pub(super) fn name(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0);
    String::from_utf8_lossy(&value[..end.unwrap_or(value.len())]).into_owned()
}

// === writing ===

/// What precedes a message's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub family: u16,
    pub flags: u16,
    pub sequence: u32,
}

/// Appends one generic netlink message to a buffer.
#[derive(Debug)]
pub(super) struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    /// Longest name written. The kernel's own limit is 16; a longer name goes out long enough to
    /// be refused, and lengths stay within their fields.
    const LONGEST_NAME: usize = 255;

    pub(super) fn message(
        buffer: &mut Vec<u8>,
        header: Header,
        command: u8,
        version: u8,
        attributes: impl FnOnce(&mut Writer<'_>),
    ) {
        let start = buffer.len();
        buffer.extend_from_slice(&[0; 4]);
        buffer.extend_from_slice(&header.family.to_ne_bytes());
        buffer.extend_from_slice(&header.flags.to_ne_bytes());
        buffer.extend_from_slice(&header.sequence.to_ne_bytes());
        // Port 0: the kernel knows the socket it came from.
        buffer.extend_from_slice(&[0, 0, 0, 0, command, version, 0, 0]);
        attributes(&mut Writer(buffer));
        let length = u32::try_from(buffer.len() - start).expect("messages are short");
        buffer[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Appends an attribute whose size is known when compiling, which keeps it at a few
    /// nanoseconds.
    pub(super) fn put<const N: usize>(&mut self, kind: u16, value: [u8; N]) {
        let length = u16::try_from(ATTRIBUTE_HEADER + N).expect("attributes are short");
        let [l0, l1] = length.to_ne_bytes();
        let [t0, t1] = kind.to_ne_bytes();
        self.0.extend_from_slice(&[l0, l1, t0, t1]);
        self.0.extend_from_slice(&value);
        self.0.extend_from_slice(&[0; 3][..aligned(N) - N]);
    }

    /// Appends a name with its terminator. A name ends at its first NUL.
    pub(super) fn put_name(&mut self, kind: u16, name: &str) {
        let name = name.split('\0').next().unwrap_or_default().as_bytes();
        let name = &name[..name.len().min(Self::LONGEST_NAME)];
        let length = ATTRIBUTE_HEADER + name.len() + 1;
        let header = u16::try_from(length).expect("names are short");
        self.0.extend_from_slice(&header.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(name);
        self.0
            .extend_from_slice(&[0; 4][..1 + aligned(length) - length]);
    }

    pub(super) fn nest(&mut self, kind: u16, attributes: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        attributes(self);
        let length = u16::try_from(self.0.len() - start).expect("nested attributes are short");
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}
