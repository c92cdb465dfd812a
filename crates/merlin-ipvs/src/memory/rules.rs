//! What the kernel does with an operation: `net/netfilter/ipvs/ip_vs_ctl.c`, checks in its order.
//!
//! Pure. The conformance suite holds this to the real thing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use merlin_model::table::{
    Counters, Destination, DestinationKey, ForwardMethod, Key, LiveDestination, LiveService,
    LiveTable, NO_SCHEDULER, Operation, Service,
};
use merlin_model::{Family, PersistenceEngine, Scheduler};
use nix::errno::Errno;

use crate::Timeouts;

/// Schedulers and persistence engines there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Modules {
    pub schedulers: Vec<String>,
    pub engines: Vec<String>,
}

impl Default for Modules {
    /// What distributions' kernels offer: all but `twos`, which is young.
    fn default() -> Self {
        let schedulers = Scheduler::ALL.into_iter().filter(|s| *s != Scheduler::Twos);
        Self {
            schedulers: schedulers.map(|s| s.name().to_owned()).collect(),
            engines: vec![PersistenceEngine::Sip.name().to_owned()],
        }
    }
}

/// Longest name of a scheduler or an engine.
const LONGEST_NAME: usize = 15;

pub(super) fn carry_out(
    table: &mut LiveTable,
    operation: &Operation,
    modules: &Modules,
) -> Result<(), Errno> {
    match operation {
        Operation::AddService(key, service) => {
            check_names(service)?;
            if table.contains_key(key) {
                return Err(Errno::EEXIST);
            }
            check_service(key, service, modules)?;
            let live = LiveService {
                service: service.clone(),
                counters: Counters::default(),
                destinations: BTreeMap::new(),
            };
            table.insert(*key, live);
        }
        Operation::EditService(key, service) => {
            check_names(service)?;
            let live = table.get_mut(key).ok_or(Errno::ESRCH)?;
            check_service(key, service, modules)?;
            live.service = service.clone();
        }
        Operation::DeleteService(key) => {
            table.remove(key).ok_or(Errno::ESRCH)?;
        }
        Operation::AddDestination(key, at, destination) => {
            let live = table.get_mut(key).ok_or(Errno::ESRCH)?;
            check_destination(key, at, destination)?;
            if live.destinations.contains_key(at) {
                return Err(Errno::EEXIST);
            }
            check_address(at.address)?;
            let destination = LiveDestination {
                destination: *destination,
                active_connections: 0,
                inactive_connections: 0,
                persistent_connections: 0,
                counters: Counters::default(),
            };
            live.destinations.insert(*at, destination);
        }
        Operation::EditDestination(key, at, destination) => {
            let live = table.get_mut(key).ok_or(Errno::ESRCH)?;
            check_destination(key, at, destination)?;
            let live = live.destinations.get_mut(at).ok_or(Errno::ENOENT)?;
            live.destination = *destination;
        }
        Operation::DeleteDestination(key, at) => {
            let live = table.get_mut(key).ok_or(Errno::ESRCH)?;
            live.destinations.remove(at).ok_or(Errno::ENOENT)?;
        }
    }
    Ok(())
}

fn check_names(service: &Service) -> Result<(), Errno> {
    let engine = service.engine.as_deref().unwrap_or_default();
    if service.scheduler.len() > LONGEST_NAME || engine.len() > LONGEST_NAME {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

fn check_service(key: &Key, service: &Service, modules: &Modules) -> Result<(), Errno> {
    let scheduler = &service.scheduler;
    if scheduler != NO_SCHEDULER && !modules.schedulers.contains(scheduler) {
        return Err(Errno::ENOENT);
    }
    if let Some(engine) = &service.engine
        && !modules.engines.contains(engine)
    {
        return Err(Errno::ENOENT);
    }
    if key.family() == Family::Ipv6 && !(1..=128).contains(&service.netmask) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

fn check_destination(key: &Key, at: &DestinationKey, to: &Destination) -> Result<(), Errno> {
    if Family::of(at.address) != key.family() && to.forward != ForwardMethod::Tunnel {
        return Err(Errno::EINVAL);
    }
    if i32::try_from(to.weight).is_err() || to.lower_threshold > to.upper_threshold {
        return Err(Errno::ERANGE);
    }
    let encapsulation = to.encapsulation;
    if encapsulation.kind == 1 && encapsulation.port == 0 {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// The kernel looks the address up: it must be one of a single host.
fn check_address(address: IpAddr) -> Result<(), Errno> {
    let single = match address {
        IpAddr::V4(address) => {
            !(address.is_unspecified() || address.is_multicast() || address.is_broadcast())
        }
        IpAddr::V6(address) => {
            !(address.is_unspecified()
                || address.is_multicast()
                || address.is_unicast_link_local()
                || address.to_ipv4_mapped().is_some())
        }
    };
    single.then_some(()).ok_or(Errno::EINVAL)
}

/// Zeroes keep what there is. The kernel counts in ticks and in an `int`; this is the limit at the
/// highest tick rate.
pub(super) fn merged(mut timeouts: Timeouts, new: Timeouts) -> Result<Timeouts, Errno> {
    const MAX: u32 = i32::MAX.unsigned_abs() / 1000;
    for (old, new) in [
        (&mut timeouts.tcp, new.tcp),
        (&mut timeouts.tcp_fin, new.tcp_fin),
        (&mut timeouts.udp, new.udp),
    ] {
        match new {
            0 => {}
            1..=MAX => *old = new,
            _ => return Err(Errno::EINVAL),
        }
    }
    Ok(timeouts)
}
