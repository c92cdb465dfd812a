//! One netlink socket that has found the IPVS family.
//!
//! The socket does not block. The kernel carries requests out inside `send` and has queued every
//! answer when it returns, and it makes a dump's next piece inside `recv`; so a queue that is
//! empty when an answer is due means that the answer is lost, not that it is late. No call can
//! wait for ever, except inside the kernel's own work.
//!
//! After any error but a refusal a link may hold a half-read dump; its owner drops it.

use std::io;

use neli::consts::socket::{Msg, NlFamily};
use neli::socket::NlSocket;
use neli::utils::Groups;
use nix::errno::Errno;

use super::batch::Batch;
use crate::OpenError;
use crate::wire::netlink::{Body, Frames, Header, flags};
use crate::wire::{Answer, Malformed, Message, Request, controller};

/// The kernel cuts a dump into pieces as large as the reader's buffer, up to this.
const LARGEST_DATAGRAM: usize = 32 * 1024;

/// Bytes asked for; the kernel cuts them to `net.core.rmem_max` and doubles what is left. With its
/// usual limit that is room for 550 answers, twice what a batch can have.
const RECEIVE_BUFFER: usize = 512 * 1024;

pub(super) struct Link {
    socket: NlSocket,
    family: u16,
    sequence: u32,
    outgoing: Vec<u8>,
    incoming: Box<[u8]>,
}

/// Why an exchange did not succeed.
#[derive(Debug)]
pub(super) enum LinkError {
    /// The kernel understood and said no.
    Refused(Errno),
    /// More in one `send` than the socket's send buffer takes. Nothing was sent.
    TooLong,
    Lost,
    Unanswered,
    Malformed(Malformed),
    Io(io::Error),
}

impl From<Malformed> for LinkError {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// How a dump went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quality {
    Complete,
    /// The kernel says that the table changed meanwhile.
    Interrupted,
}

impl Link {
    pub(super) fn open() -> Result<Self, OpenError> {
        let connect = || {
            let socket = NlSocket::connect(NlFamily::Generic, None, Groups::empty())?;
            socket.nonblock()?;
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
            Ok(socket)
        };
        let mut link = Self {
            socket: connect().map_err(OpenError::Socket)?,
            family: 0,
            sequence: 0,
            outgoing: Vec::new(),
            incoming: vec![0; LARGEST_DATAGRAM].into(),
        };
        link.family = link.resolve().map_err(open_error)?;
        // The family can be seen by all, its use is what takes a capability.
        link.ask(&Request::GetInfo, |_| Ok(()))
            .map_err(open_error)?;
        Ok(link)
    }

    fn resolve(&mut self) -> Result<u16, LinkError> {
        let sequence = self.next_sequence();
        self.outgoing.clear();
        controller::family_request(sequence, &mut self.outgoing);
        self.send()?;
        let mut family = None;
        self.receive(sequence, Answer::Message, |payload| {
            family = Some(controller::family_id(payload)?);
            Ok(())
        })?;
        family.ok_or(LinkError::Unanswered)
    }

    /// Makes one request and gives every message of its answer to `take`.
    pub(super) fn ask(
        &mut self,
        request: &Request<'_>,
        mut take: impl FnMut(Message<'_>) -> Result<(), Malformed>,
    ) -> Result<Quality, LinkError> {
        let sequence = self.next_sequence();
        let header = Header {
            family: self.family,
            flags: request.flags(),
            sequence,
        };
        self.outgoing.clear();
        request.encode(header, &mut self.outgoing);
        self.send()?;
        self.receive(sequence, request.answer(), |payload| {
            take(Message::decode(payload)?)
        })
    }

    /// Makes all requests in one go; an error number each, 0 for none.
    pub(super) fn ask_together<'a>(
        &mut self,
        requests: impl ExactSizeIterator<Item = Request<'a>>,
    ) -> Result<Vec<i32>, LinkError> {
        let length = requests.len();
        if length == 0 {
            return Ok(Vec::new());
        }
        self.outgoing.clear();
        let first = self.sequence.wrapping_add(1);
        for (index, request) in requests.enumerate() {
            let last = index + 1 == length;
            let header = Header {
                family: self.family,
                flags: flags::REQUEST | if last { flags::ACK } else { 0 },
                sequence: self.next_sequence(),
            };
            request.encode(header, &mut self.outgoing);
        }
        self.send()?;
        let mut batch = Batch::new(first, length);
        while !batch.is_complete() {
            let length = self.receive_datagram()?;
            batch.take(&self.incoming[..length])?;
        }
        Ok(batch.into_outcomes())
    }

    /// Reads the answer to the request numbered `sequence`, skipping those to earlier ones.
    fn receive(
        &mut self,
        sequence: u32,
        answer: Answer,
        mut take: impl FnMut(&[u8]) -> Result<(), Malformed>,
    ) -> Result<Quality, LinkError> {
        let mut quality = Quality::Complete;
        loop {
            let length = self.receive_datagram()?;
            for frame in Frames::new(&self.incoming[..length]) {
                let frame = frame?;
                if frame.sequence != sequence {
                    continue;
                }
                if frame.flags & flags::DUMP_INTERRUPTED != 0 {
                    quality = Quality::Interrupted;
                }
                match frame.body {
                    Body::Outcome(0) | Body::Done(0) => return Ok(quality),
                    Body::Outcome(errno) | Body::Done(errno) => {
                        return Err(LinkError::Refused(Errno::from_raw(errno)));
                    }
                    Body::Family(_, payload) => {
                        take(payload)?;
                        if answer == Answer::Message {
                            return Ok(quality);
                        }
                    }
                    Body::Other => {}
                }
            }
        }
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self) -> Result<(), LinkError> {
        let sent = self.socket.send(&self.outgoing, Msg::empty());
        sent.map(drop).map_err(|error| match errno(&error) {
            Some(Errno::EMSGSIZE) => LinkError::TooLong,
            _ => LinkError::Io(error),
        })
    }

    fn receive_datagram(&mut self) -> Result<usize, LinkError> {
        let received = self.socket.recv(&mut self.incoming, Msg::empty());
        let received = received.map(|(length, _groups)| length);
        received.map_err(|error| match errno(&error) {
            Some(Errno::ENOBUFS) => LinkError::Lost,
            Some(Errno::EAGAIN) => LinkError::Unanswered,
            _ => LinkError::Io(error),
        })
    }
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

fn open_error(error: LinkError) -> OpenError {
    match error {
        LinkError::Refused(Errno::ENOENT) => OpenError::Missing,
        LinkError::Refused(Errno::EPERM) => OpenError::NotPermitted,
        LinkError::Refused(errno) => OpenError::Resolve(errno.into()),
        LinkError::TooLong => OpenError::Resolve(Errno::EMSGSIZE.into()),
        LinkError::Lost => OpenError::Resolve(Errno::ENOBUFS.into()),
        LinkError::Unanswered => OpenError::Resolve(Errno::EAGAIN.into()),
        LinkError::Malformed(malformed) => OpenError::Malformed(malformed),
        LinkError::Io(error) => OpenError::Resolve(error),
    }
}
