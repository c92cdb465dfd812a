//! The family's messages: what is asked and what comes back.

use merlin_model::Family;
use merlin_model::table::{Destination, DestinationKey, Key, LiveDestination, Operation, Service};

use super::daemon::{self, Daemon, DaemonState};
use super::destination;
use super::netlink::{Attributes, Header, Malformed, Writer, fixed, flags};
use super::service::{self, ServiceRecord};
use crate::Timeouts;

/// `IPVS_GENL_VERSION`.
const VERSION: u8 = 1;

// Attributes of the first level.
const SERVICE: u16 = 1;
const DESTINATION: u16 = 2;
const DAEMON: u16 = 3;
const TIMEOUT_TCP: u16 = 4;
const TIMEOUT_TCP_FIN: u16 = 5;
const TIMEOUT_UDP: u16 = 6;
// `SET_INFO` gives the same numbers another meaning.
const INFO_VERSION: u16 = 1;
const INFO_TABLE_SIZE: u16 = 2;

/// `IPVS_CMD_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Command {
    NewService = 1,
    SetService,
    DelService,
    GetService,
    NewDest,
    SetDest,
    DelDest,
    GetDest,
    NewDaemon,
    DelDaemon,
    GetDaemon,
    SetConfig,
    GetConfig,
    /// Only ever the reply to `GetInfo`.
    SetInfo,
    GetInfo,
    Zero,
    Flush,
}

impl Command {
    /// In the order of their numbers, which start at 1.
    pub const ALL: [Self; 17] = [
        Self::NewService,
        Self::SetService,
        Self::DelService,
        Self::GetService,
        Self::NewDest,
        Self::SetDest,
        Self::DelDest,
        Self::GetDest,
        Self::NewDaemon,
        Self::DelDaemon,
        Self::GetDaemon,
        Self::SetConfig,
        Self::GetConfig,
        Self::SetInfo,
        Self::GetInfo,
        Self::Zero,
        Self::Flush,
    ];

    pub fn number(self) -> u8 {
        self as u8
    }

    fn new(number: u8) -> Result<Self, Malformed> {
        let index = usize::from(number).checked_sub(1);
        index
            .and_then(|index| Self::ALL.get(index).copied())
            .ok_or(Malformed::Command(number))
    }
}

/// What the kernel can be asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    NewService(&'a Key, &'a Service),
    SetService(&'a Key, &'a Service),
    DelService(&'a Key),
    GetService(&'a Key),
    /// All services, without their destinations.
    DumpServices,
    NewDest(&'a Key, &'a DestinationKey, &'a Destination),
    SetDest(&'a Key, &'a DestinationKey, &'a Destination),
    DelDest(&'a Key, &'a DestinationKey),
    /// The destinations of one service, none if there is no such service.
    DumpDests(&'a Key),
    NewDaemon(&'a Daemon),
    DelDaemon(DaemonState),
    DumpDaemons,
    SetConfig(Timeouts),
    GetConfig,
    GetInfo,
    /// Resets the counters of one service or of everything.
    Zero(Option<&'a Key>),
    Flush,
}

/// How a request is answered when it succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With an acknowledgement, if one is asked for.
    Acknowledgement,
    /// With one message.
    Message,
    /// With any number of messages and an end mark.
    Dump,
}

impl<'a> From<&'a Operation> for Request<'a> {
    fn from(operation: &'a Operation) -> Self {
        match operation {
            Operation::AddService(key, service) => Self::NewService(key, service),
            Operation::EditService(key, service) => Self::SetService(key, service),
            Operation::DeleteService(key) => Self::DelService(key),
            Operation::AddDestination(key, at, to) => Self::NewDest(key, at, to),
            Operation::EditDestination(key, at, to) => Self::SetDest(key, at, to),
            Operation::DeleteDestination(key, at) => Self::DelDest(key, at),
        }
    }
}

impl Request<'_> {
    pub fn command(&self) -> Command {
        match self {
            Self::NewService(..) => Command::NewService,
            Self::SetService(..) => Command::SetService,
            Self::DelService(_) => Command::DelService,
            Self::GetService(_) | Self::DumpServices => Command::GetService,
            Self::NewDest(..) => Command::NewDest,
            Self::SetDest(..) => Command::SetDest,
            Self::DelDest(..) => Command::DelDest,
            Self::DumpDests(_) => Command::GetDest,
            Self::NewDaemon(_) => Command::NewDaemon,
            Self::DelDaemon(_) => Command::DelDaemon,
            Self::DumpDaemons => Command::GetDaemon,
            Self::SetConfig(_) => Command::SetConfig,
            Self::GetConfig => Command::GetConfig,
            Self::GetInfo => Command::GetInfo,
            Self::Zero(_) => Command::Zero,
            Self::Flush => Command::Flush,
        }
    }

    pub fn answer(&self) -> Answer {
        match self {
            Self::DumpServices | Self::DumpDests(_) | Self::DumpDaemons => Answer::Dump,
            Self::GetService(_) | Self::GetConfig | Self::GetInfo => Answer::Message,
            _ => Answer::Acknowledgement,
        }
    }

    /// Flags with which the kernel always answers.
    pub fn flags(&self) -> u16 {
        flags::REQUEST
            | match self.answer() {
                Answer::Acknowledgement => flags::ACK,
                Answer::Message => 0,
                Answer::Dump => flags::DUMP,
            }
    }

    /// Appends the request to `buffer`.
    pub fn encode(&self, header: Header, buffer: &mut Vec<u8>) {
        let command = self.command().number();
        Writer::message(buffer, header, command, VERSION, |writer| match *self {
            Self::NewService(key, settings) | Self::SetService(key, settings) => {
                writer.nest(SERVICE, |writer| {
                    service::put_key(writer, key);
                    service::put_settings(writer, settings, key.family());
                });
            }
            Self::DelService(key)
            | Self::GetService(key)
            | Self::DumpDests(key)
            | Self::Zero(Some(key)) => {
                writer.nest(SERVICE, |writer| service::put_key(writer, key));
            }
            Self::NewDest(key, at, settings) | Self::SetDest(key, at, settings) => {
                writer.nest(SERVICE, |writer| service::put_key(writer, key));
                writer.nest(DESTINATION, |writer| {
                    destination::put_key(writer, at);
                    destination::put_settings(writer, settings);
                });
            }
            Self::DelDest(key, at) => {
                writer.nest(SERVICE, |writer| service::put_key(writer, key));
                writer.nest(DESTINATION, |writer| destination::put_key(writer, at));
            }
            Self::NewDaemon(daemon) => {
                writer.nest(DAEMON, |writer| daemon::put(writer, daemon));
            }
            Self::DelDaemon(state) => {
                writer.nest(DAEMON, |writer| daemon::put_state(writer, state));
            }
            Self::SetConfig(timeouts) => {
                writer.put(TIMEOUT_TCP, timeouts.tcp.to_ne_bytes());
                writer.put(TIMEOUT_TCP_FIN, timeouts.tcp_fin.to_ne_bytes());
                writer.put(TIMEOUT_UDP, timeouts.udp.to_ne_bytes());
            }
            Self::DumpServices
            | Self::DumpDaemons
            | Self::GetConfig
            | Self::GetInfo
            | Self::Zero(None)
            | Self::Flush => {}
        });
    }
}

/// What the running IPVS says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// Three bytes: 0x010201 is 1.2.1.
    pub version: u32,
    pub connection_table_size: u32,
}

/// A message of the family, in either direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub command: Command,
    attributes: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads what follows the netlink header.
    pub fn decode(payload: &'a [u8]) -> Result<Self, Malformed> {
        let ([command, ..], attributes) =
            payload.split_first_chunk::<4>().ok_or(Malformed::Message)?;
        Ok(Self {
            command: Command::new(*command)?,
            attributes,
        })
    }

    fn find(&self, kind: u16) -> Result<Option<&'a [u8]>, Malformed> {
        Attributes::new(self.attributes).find(kind)
    }

    fn nested(&self, kind: u16, what: &'static str) -> Result<&'a [u8], Malformed> {
        self.find(kind)?.ok_or(Malformed::Missing(what))
    }

    fn number(&self, kind: u16, what: &'static str) -> Result<u32, Malformed> {
        let value = self.find(kind)?.map(|value| fixed(value, what));
        value.transpose().map(|n| n.map_or(0, u32::from_ne_bytes))
    }

    pub fn service_key(&self) -> Result<Key, Malformed> {
        service::key(self.nested(SERVICE, "service")?)
    }

    pub fn service(&self) -> Result<ServiceRecord, Malformed> {
        service::record(self.nested(SERVICE, "service")?)
    }

    /// `service` is the family of the service the destination belongs to.
    pub fn destination_key(&self, service: Family) -> Result<DestinationKey, Malformed> {
        destination::key(self.nested(DESTINATION, "destination")?, service)
    }

    /// `service` is the family of the service the destination belongs to.
    pub fn destination(
        &self,
        service: Family,
    ) -> Result<(DestinationKey, LiveDestination), Malformed> {
        destination::record(self.nested(DESTINATION, "destination")?, service)
    }

    pub fn daemon_state(&self) -> Result<DaemonState, Malformed> {
        daemon::state(self.nested(DAEMON, "daemon")?)
    }

    pub fn daemon(&self) -> Result<Daemon, Malformed> {
        daemon::daemon(self.nested(DAEMON, "daemon")?)
    }

    /// 0 for a timeout the message leaves out: a kernel without TCP has none for it.
    pub fn timeouts(&self) -> Result<Timeouts, Malformed> {
        Ok(Timeouts {
            tcp: self.number(TIMEOUT_TCP, "a timeout")?,
            tcp_fin: self.number(TIMEOUT_TCP_FIN, "a timeout")?,
            udp: self.number(TIMEOUT_UDP, "a timeout")?,
        })
    }

    pub fn info(&self) -> Result<Info, Malformed> {
        Ok(Info {
            version: self.number(INFO_VERSION, "the version")?,
            connection_table_size: self.number(INFO_TABLE_SIZE, "the table size")?,
        })
    }
}
