//! The kernel's own IPVS.
//!
//! Changes go out in batches, one `send` and usually one `recv` each ([`batch`]): next to a round
//! trip per change that is the difference between milliseconds and seconds for a large table.
//!
//! Dumps go by position and the kernel does not guard them, so a concurrent writer (someone's
//! `ipvsadm`) can make one skip or repeat an entry. Repeats fall together in a map; against skips
//! the table's fingerprint is taken before and after, and a dump it changed under is made again.
//! A table that never settles is an error: planning against it would repair what is not broken.

mod batch;
mod link;
mod proc;

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use merlin_model::table::{
    DestinationKey, Entry, Key, LiveDestination, LiveService, LiveTable, Operation, Table,
};
use nix::errno::Errno;

use self::link::{Link, LinkError, Quality};
use crate::wire::{Malformed, Message, Request, ServiceRecord};
use crate::{Call, Dataplane, DataplaneError, Fingerprint, OpenError, Refusal, Timeouts};

/// The IPVS table of the network namespace of the thread that opened it.
pub struct Kernel {
    /// Absent after an error that leaves unread answers behind; opened again when needed.
    link: Option<Link>,
    /// Requests sent together.
    batch: usize,
    /// Scratch space.
    text: Vec<u8>,
}

impl Kernel {
    /// Requests sent together, at most: the smallest number that costs no more per request than
    /// thousands would. If each were refused, the answers would fit the default receive buffer,
    /// which holds 277.
    const BATCH: usize = 256;

    /// Dumps made in a row for one that nothing changed under.
    const ATTEMPTS: u32 = 5;

    pub fn open() -> Result<Self, OpenError> {
        Ok(Self {
            link: Some(Link::open()?),
            batch: Self::BATCH,
            text: Vec::new(),
        })
    }

    /// Makes any request of the protocol and gives every message of its answer to `take`.
    pub fn request(
        &mut self,
        request: &Request<'_>,
        take: impl FnMut(Message<'_>) -> Result<(), Malformed>,
    ) -> Result<(), DataplaneError> {
        self.ask(Call::Request, request, take).map(drop)
    }

    fn ask(
        &mut self,
        call: Call,
        request: &Request<'_>,
        take: impl FnMut(Message<'_>) -> Result<(), Malformed>,
    ) -> Result<Quality, DataplaneError> {
        let asked = self.try_ask(request, take)?;
        asked.map_err(|error| self.failed(call, error))
    }

    fn try_ask(
        &mut self,
        request: &Request<'_>,
        mut take: impl FnMut(Message<'_>) -> Result<(), Malformed>,
    ) -> Result<Result<Quality, LinkError>, OpenError> {
        let asked = self.link()?.ask(request, &mut take);
        if !matches!(asked, Err(LinkError::Refused(Errno::ENOENT))) {
            return Ok(asked);
        }
        // An empty IPVS can be unloaded, and has another number when it is loaded again.
        self.link = None;
        Ok(self.link()?.ask(request, take))
    }

    fn link(&mut self) -> Result<&mut Link, OpenError> {
        match &mut self.link {
            Some(link) => Ok(link),
            link @ None => Ok(link.insert(Link::open()?)),
        }
    }

    /// Puts an error into the caller's words, and the link away if it cannot be used again.
    fn failed(&mut self, call: Call, error: LinkError) -> DataplaneError {
        if !matches!(error, LinkError::Refused(_)) {
            tracing::debug!(%call, ?error, "giving up the netlink socket");
            self.link = None;
        }
        let refused = |errno: Errno| DataplaneError::Refused {
            call,
            source: errno.into(),
        };
        match error {
            LinkError::Refused(errno) => refused(errno),
            LinkError::TooLong => refused(Errno::EMSGSIZE),
            LinkError::Lost => DataplaneError::Lost { call },
            LinkError::Unanswered => DataplaneError::Unanswered { call },
            LinkError::Malformed(source) => DataplaneError::Malformed { call, source },
            LinkError::Io(source) => DataplaneError::Io { call, source },
        }
    }

    /// Applies up to `self.batch` of the operations, at least one; the answers are as many.
    fn apply_some(
        &mut self,
        operations: &[Operation],
    ) -> Result<Vec<Result<(), Refusal>>, DataplaneError> {
        loop {
            let operations = &operations[..operations.len().min(self.batch)];
            let requests = operations.iter().map(Request::from);
            match self.link()?.ask_together(requests) {
                Ok(outcomes) => {
                    let outcomes = operations.iter().zip(outcomes);
                    return Ok(outcomes.map(answer).collect());
                }
                // A send buffer smaller than usual; nothing has gone out.
                Err(LinkError::TooLong) if self.batch > 1 => self.batch /= 2,
                Err(error) => {
                    // Fewer requests have fewer answers to lose.
                    if matches!(error, LinkError::Lost) {
                        self.batch = (self.batch / 2).max(1);
                    }
                    return Err(self.failed(Call::Apply, error));
                }
            }
        }
    }

    /// The whole table, and whether nothing changed it meanwhile; several attempts are made at
    /// that.
    fn whole(&mut self, call: Call) -> Result<(LiveTable, bool), DataplaneError> {
        let mut before = self.fingerprint_if_any();
        let mut attempts = 1;
        loop {
            let (table, quality) = self.dump_once(call)?;
            let after = self.fingerprint_if_any();
            let settled = quality == Quality::Complete && before == after;
            if settled || attempts == Self::ATTEMPTS {
                return Ok((table, settled));
            }
            before = after;
            attempts += 1;
        }
    }

    /// None without procfs; then dumps are believed.
    fn fingerprint_if_any(&mut self) -> Option<Fingerprint> {
        proc::fingerprint(&mut self.text).ok()
    }

    fn dump_once(&mut self, call: Call) -> Result<(LiveTable, Quality), DataplaneError> {
        let mut table = LiveTable::new();
        let mut quality = self.ask(call, &Request::DumpServices, |message| {
            let (key, service) = live(message.service()?);
            table.insert(key, service);
            Ok(())
        })?;
        for (key, service) in &mut table {
            if self.destinations(call, key, service)? == Quality::Interrupted {
                quality = Quality::Interrupted;
            }
        }
        Ok((table, quality))
    }

    /// Adds its destinations to a service.
    fn destinations(
        &mut self,
        call: Call,
        key: &Key,
        service: &mut LiveService,
    ) -> Result<Quality, DataplaneError> {
        self.ask(call, &Request::DumpDests(key), |message| {
            let (at, destination) = message.destination(key.family())?;
            service.destinations.insert(at, destination);
            Ok(())
        })
    }

    /// One service with its destinations.
    fn one(&mut self, key: &Key) -> Result<Option<LiveService>, DataplaneError> {
        let mut found = None;
        let asked = self.try_ask(&Request::GetService(key), |message| {
            found = Some(live(message.service()?).1);
            Ok(())
        });
        match asked? {
            Ok(_) => {}
            Err(LinkError::Refused(Errno::ESRCH)) => return Ok(None),
            Err(error) => return Err(self.failed(Call::Read, error)),
        }
        if let Some(service) = &mut found {
            self.destinations(Call::Read, key, service)?;
        }
        Ok(found)
    }
}

impl Dataplane for Kernel {
    fn dump(&mut self) -> Result<Table, DataplaneError> {
        let (table, settled) = self.whole(Call::Dump)?;
        if !settled {
            return Err(DataplaneError::Unsettled { call: Call::Dump });
        }
        let services = table.into_iter();
        Ok(Table {
            services: services.map(|(key, live)| (key, entry(live))).collect(),
        })
    }

    fn keys(&mut self) -> Result<Vec<Key>, DataplaneError> {
        let mut keys = Vec::new();
        self.ask(Call::Keys, &Request::DumpServices, |message| {
            keys.push(message.service()?.key);
            Ok(())
        })?;
        Ok(keys)
    }

    fn read(&mut self, keys: &[Key]) -> Result<Table, DataplaneError> {
        let mut table = Table::default();
        for key in keys {
            if let Some(live) = self.one(key)? {
                table.services.insert(*key, entry(live));
            }
        }
        Ok(table)
    }

    fn apply(
        &mut self,
        operations: &[Operation],
    ) -> Result<Vec<Result<(), Refusal>>, DataplaneError> {
        let mut answers = Vec::with_capacity(operations.len());
        while answers.len() < operations.len() {
            answers.append(&mut self.apply_some(&operations[answers.len()..])?);
        }
        Ok(answers)
    }

    fn live(&mut self) -> Result<LiveTable, DataplaneError> {
        // To be looked at, so better short of an entry than none.
        Ok(self.whole(Call::Live)?.0)
    }

    fn fingerprint(&mut self) -> Result<Fingerprint, DataplaneError> {
        proc::fingerprint(&mut self.text).map_err(|source| match source.kind() {
            // The module has been unloaded.
            io::ErrorKind::NotFound => OpenError::Missing.into(),
            _ => DataplaneError::Io {
                call: Call::Fingerprint,
                source,
            },
        })
    }

    fn timeouts(&mut self) -> Result<Timeouts, DataplaneError> {
        let mut timeouts = Timeouts::default();
        self.ask(Call::Timeouts, &Request::GetConfig, |message| {
            timeouts = message.timeouts()?;
            Ok(())
        })?;
        Ok(timeouts)
    }

    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), DataplaneError> {
        let request = Request::SetConfig(timeouts);
        self.ask(Call::SetTimeouts, &request, |_| Ok(())).map(drop)
    }
}

fn answer((operation, errno): (&Operation, i32)) -> Result<(), Refusal> {
    match errno {
        0 => Ok(()),
        errno => Err(Refusal::new(operation, errno)),
    }
}

fn live(record: ServiceRecord) -> (Key, LiveService) {
    let service = LiveService {
        service: record.service,
        counters: record.counters,
        destinations: BTreeMap::new(),
    };
    (record.key, service)
}

fn entry(live: LiveService) -> Entry {
    let setting = |(at, live): (DestinationKey, LiveDestination)| (at, live.destination);
    Entry {
        service: live.service,
        destinations: live.destinations.into_iter().map(setting).collect(),
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kernel")
            .field("connected", &self.link.is_some())
            .field("batch", &self.batch)
            .finish_non_exhaustive()
    }
}
