//! The kernel's error numbers in words.
//!
//! The same number means different things for different operations
//! (`net/netfilter/ipvs/ip_vs_ctl.c`), so the words come from both.

use std::io;
use std::net::IpAddr;

use merlin_model::Family;
use merlin_model::table::{
    Destination, DestinationKey, ForwardMethod, Key, NO_SCHEDULER, Operation, Service,
};
use nix::errno::Errno;

/// The kernel refused one operation. Displays as the reason, in words an operator can act on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// The error number.
    pub errno: i32,
    reason: String,
    stale: bool,
}

impl Refusal {
    pub fn new(operation: &Operation, errno: i32) -> Self {
        let number = Errno::from_raw(errno);
        let unexplained = || io::Error::from_raw_os_error(errno).to_string();
        Self {
            errno,
            reason: explain(operation, number).unwrap_or_else(unexplained),
            stale: is_stale(operation, number),
        }
    }

    /// Whether the table is not what the caller believed it to be: what was to be added is there,
    /// what was to be edited or deleted is not. Reading it again and planning anew will tell.
    pub fn is_stale(&self) -> bool {
        self.stale
    }
}

fn is_stale(operation: &Operation, errno: Errno) -> bool {
    match operation {
        Operation::AddService(..) => errno == Errno::EEXIST,
        Operation::EditService(..) | Operation::DeleteService(_) => errno == Errno::ESRCH,
        Operation::AddDestination(..) => matches!(errno, Errno::EEXIST | Errno::ESRCH),
        Operation::EditDestination(..) | Operation::DeleteDestination(..) => {
            matches!(errno, Errno::ENOENT | Errno::ESRCH)
        }
    }
}

fn explain(operation: &Operation, errno: Errno) -> Option<String> {
    let key = operation.key();
    match errno {
        Errno::EPERM => {
            Some("not permitted: this takes CAP_NET_ADMIN in the initial user namespace".to_owned())
        }
        Errno::EAFNOSUPPORT => Some("this kernel's IPVS knows no IPv6".to_owned()),
        Errno::ENOMEM | Errno::ENOBUFS => Some("the kernel is out of memory".to_owned()),
        Errno::ESRCH => Some(format!("there is no service {key}")),
        _ => match operation {
            Operation::AddService(key, service) | Operation::EditService(key, service) => {
                explain_service(key, service, errno)
            }
            Operation::AddDestination(key, at, destination)
            | Operation::EditDestination(key, at, destination) => {
                explain_destination(key, at, destination, errno)
            }
            Operation::DeleteDestination(key, at) if errno == Errno::ENOENT => {
                Some(format!("{key} has no real server {at}"))
            }
            Operation::DeleteService(_) | Operation::DeleteDestination(..) => None,
        },
    }
}

fn explain_service(key: &Key, service: &Service, errno: Errno) -> Option<String> {
    let Service {
        scheduler, engine, ..
    } = service;
    Some(match (errno, engine) {
        (Errno::EEXIST, _) => format!("there already is a service {key}"),
        (Errno::ENOENT, None) => format!(
            "scheduler {scheduler} is not available on this node: modprobe ip_vs_{scheduler}"
        ),
        (Errno::ENOENT, Some(engine)) if scheduler == NO_SCHEDULER => format!(
            "persistence engine {engine} is not available on this node: \
             modprobe ip_vs_pe_{engine}"
        ),
        (Errno::ENOENT, Some(engine)) => format!(
            "scheduler {scheduler} or persistence engine {engine} is not available on this node: \
             modprobe -a ip_vs_{scheduler} ip_vs_pe_{engine}"
        ),
        (Errno::EINVAL, _) if key.family() == Family::Ipv6 => {
            "the kernel takes no such IPv6 service: is the ipv6 module loaded and the netmask \
             1 to 128?"
                .to_owned()
        }
        (Errno::EINVAL, _) => "the kernel takes no such service".to_owned(),
        _ => return None,
    })
}

fn explain_destination(
    key: &Key,
    at: &DestinationKey,
    destination: &Destination,
    errno: Errno,
) -> Option<String> {
    Some(match errno {
        Errno::EEXIST => format!("{key} already has a real server {at}"),
        Errno::ENOENT => format!("{key} has no real server {at}"),
        Errno::ERANGE => format!(
            "weight {} exceeds 2147483647 or lower threshold {} exceeds upper threshold {}",
            destination.weight, destination.lower_threshold, destination.upper_threshold
        ),
        Errno::EINVAL => explain_invalid(key, at, destination),
        _ => return None,
    })
}

/// `EINVAL` has many causes; the likeliest first.
fn explain_invalid(key: &Key, at: &DestinationKey, destination: &Destination) -> String {
    let mixed = Family::of(at.address) != key.family();
    let encapsulation = destination.encapsulation;
    if mixed && destination.forward != ForwardMethod::Tunnel {
        return format!("{key} reaches {at}, of the other address family, by tunnel only");
    }
    if mixed {
        return format!(
            "{key} cannot reach {at}, of the other address family, while a connection \
             synchronisation daemon runs"
        );
    }
    if encapsulation.kind == 1 && encapsulation.port == 0 {
        return "a GUE tunnel needs a port".to_owned();
    }
    let hint = match at.address {
        address if address.is_unspecified() || address.is_multicast() => {
            return format!("{address} is no address of a single host");
        }
        IpAddr::V4(_) => "is the lo interface up in this network namespace?",
        IpAddr::V6(_) => {
            "is the ipv6 module loaded, and the address neither link-local nor multicast?"
        }
    };
    format!(
        "the kernel does not accept {} as a real server's address: {hint}",
        at.address
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::samples::{at, fwmark, service, tcp, to, tunnel};

    fn words(operation: Operation, errno: Errno) -> String {
        Refusal::new(&operation, errno as i32).to_string()
    }

    #[test]
    fn a_missing_module_is_named_with_its_remedy() {
        let key = tcp("10.0.0.1", 80);
        assert_eq!(
            words(
                Operation::AddService(key, service(&key, "mh")),
                Errno::ENOENT
            ),
            "scheduler mh is not available on this node: modprobe ip_vs_mh"
        );
        let with_engine = Service {
            engine: Some("sip".to_owned()),
            ..service(&key, "rr")
        };
        assert_eq!(
            words(
                Operation::EditService(key, with_engine.clone()),
                Errno::ENOENT
            ),
            "scheduler rr or persistence engine sip is not available on this node: \
             modprobe -a ip_vs_rr ip_vs_pe_sip"
        );
        let without_scheduler = Service {
            scheduler: NO_SCHEDULER.to_owned(),
            ..with_engine
        };
        assert_eq!(
            words(Operation::AddService(key, without_scheduler), Errno::ENOENT),
            "persistence engine sip is not available on this node: modprobe ip_vs_pe_sip"
        );
    }

    #[test]
    fn the_same_number_says_what_it_means_for_the_operation() {
        let (key, mark) = (tcp("10.0.0.1", 80), fwmark(Family::Ipv6, 7));
        let (server, masq) = (at("192.168.0.1", 80), to(ForwardMethod::Masq, 1));
        for (operation, errno, expected) in [
            (
                Operation::AddService(key, service(&key, "rr")),
                Errno::EEXIST,
                "there already is a service TCP 10.0.0.1:80",
            ),
            (
                Operation::AddDestination(mark, server, masq),
                Errno::EEXIST,
                "FWM 7 IPv6 already has a real server 192.168.0.1:80",
            ),
            (
                Operation::DeleteDestination(key, server),
                Errno::ENOENT,
                "TCP 10.0.0.1:80 has no real server 192.168.0.1:80",
            ),
            (
                Operation::DeleteDestination(key, server),
                Errno::ESRCH,
                "there is no service TCP 10.0.0.1:80",
            ),
            (
                Operation::AddDestination(key, server, masq),
                Errno::EPERM,
                "not permitted: this takes CAP_NET_ADMIN in the initial user namespace",
            ),
            (
                Operation::DeleteService(key),
                Errno::EIO,
                "Input/output error (os error 5)",
            ),
        ] {
            assert_eq!(words(operation, errno), expected);
        }
    }

    #[test]
    fn an_invalid_destination_is_explained_by_its_likeliest_cause() {
        let (v4, v6) = (tcp("10.0.0.1", 80), tcp("2001:db8::1", 80));
        let masq = to(ForwardMethod::Masq, 1);
        for (key, server, destination, expected) in [
            (v4, "192.168.0.1", masq, "is the lo interface up"),
            (v4, "224.0.0.1", masq, "no address of a single host"),
            (v4, "0.0.0.0", masq, "no address of a single host"),
            (v6, "2001:db8::2", masq, "is the ipv6 module loaded"),
            (v4, "2001:db8::2", masq, "by tunnel only"),
            (v4, "2001:db8::2", tunnel(0, 0, 0), "synchronisation daemon"),
            (
                v4,
                "192.168.0.1",
                tunnel(1, 0, 0),
                "a GUE tunnel needs a port",
            ),
        ] {
            let add = Operation::AddDestination(key, at(server, 80), destination);
            let words = words(add, Errno::EINVAL);
            assert!(words.contains(expected), "{server}: {words}");
        }
    }

    #[test]
    fn unknown_numbers_are_not_lost() {
        let refusal = Refusal::new(&Operation::DeleteService(tcp("10.0.0.1", 80)), 4095);
        assert_eq!(refusal.errno, 4095);
        assert!(refusal.to_string().contains("4095"), "{refusal}");
    }
}
