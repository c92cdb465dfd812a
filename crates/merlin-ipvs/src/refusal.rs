//! The kernel's error numbers in words.
//!
//! The same number means different things for different operations
//! (`net/netfilter/ipvs/ip_vs_ctl.c`), so the words come from both.

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
        Self {
            errno,
            reason: explain(operation, number),
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

fn explain(operation: &Operation, errno: Errno) -> String {
    match errno {
        Errno::EPERM => {
            return "not permitted: this takes CAP_NET_ADMIN in the initial user namespace"
                .to_owned();
        }
        Errno::EAFNOSUPPORT => return "this kernel's IPVS knows no IPv6".to_owned(),
        Errno::ENOMEM | Errno::ENOBUFS => return "the kernel is out of memory".to_owned(),
        Errno::ESRCH => return format!("there is no service {}", operation.key()),
        _ => {}
    }
    match operation {
        Operation::AddService(key, service) | Operation::EditService(key, service) => {
            explain_service(key, service, errno)
        }
        Operation::AddDestination(key, at, destination)
        | Operation::EditDestination(key, at, destination) => {
            explain_destination(key, at, destination, errno)
        }
        Operation::DeleteDestination(key, at) if errno == Errno::ENOENT => {
            format!("{key} has no real server {at}")
        }
        Operation::DeleteService(_) | Operation::DeleteDestination(..) => other(errno as i32),
    }
}

fn explain_service(key: &Key, service: &Service, errno: Errno) -> String {
    let Service {
        scheduler, engine, ..
    } = service;
    match (errno, engine) {
        (Errno::EEXIST, _) => format!("there already is a service {key}"),
        (Errno::ENOENT, None) => {
            format!(
                "scheduler {scheduler} is not available on this node: modprobe ip_vs_{scheduler}"
            )
        }
        (Errno::ENOENT, Some(engine)) if scheduler == NO_SCHEDULER => format!(
            "persistence engine {engine} is not available on this node: \
             modprobe ip_vs_pe_{engine}"
        ),
        (Errno::ENOENT, Some(engine)) => format!(
            "scheduler {scheduler} or persistence engine {engine} is not available on this node: \
             modprobe ip_vs_{scheduler} ip_vs_pe_{engine}"
        ),
        (Errno::EINVAL, _) if key.family() == Family::Ipv6 => {
            "the kernel takes no such IPv6 service: is the ipv6 module loaded and the netmask \
             1 to 128?"
                .to_owned()
        }
        (Errno::EINVAL, _) => "the kernel takes no such service".to_owned(),
        _ => other(errno as i32),
    }
}

fn explain_destination(
    key: &Key,
    at: &DestinationKey,
    destination: &Destination,
    errno: Errno,
) -> String {
    match errno {
        Errno::EEXIST => format!("{key} already has a real server {at}"),
        Errno::ENOENT => format!("{key} has no real server {at}"),
        Errno::ERANGE => format!(
            "weight {} exceeds 2147483647 or lower threshold {} exceeds upper threshold {}",
            destination.weight, destination.lower_threshold, destination.upper_threshold
        ),
        Errno::EINVAL => explain_invalid(key, at, destination),
        _ => other(errno as i32),
    }
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
        std::net::IpAddr::V4(_) => "is the lo interface up in this network namespace?",
        std::net::IpAddr::V6(_) => {
            "is the ipv6 module loaded, and the address neither link-local nor multicast?"
        }
    };
    format!(
        "the kernel does not accept {} as a real server's address: {hint}",
        at.address
    )
}

fn other(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}
