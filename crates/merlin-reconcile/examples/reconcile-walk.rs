//! Walks the kernel's own IPVS table through a random history of catalogs, verdicts, crashes and
//! meddling, and checks after every step that the kernel holds what it should.
//!
//! It needs CAP_NET_ADMIN, `ip_vs` and `ipv6`, and a network namespace to itself, with `lo` up:
//! the table is emptied first.
//!
//! ```text
//! reconcile-walk [STEPS [SEED]]
//! ```

use std::env;
use std::error::Error;
use std::num::{NonZeroU16, NonZeroU32};

use merlin_ipvs::{Dataplane, DataplaneError, Kernel};
use merlin_model::command::{KeyPatch, ServerPatch, ServicePatch};
use merlin_model::table::{Operation, Table};
use merlin_model::{
    Catalog, Checksum, Command, Family, Forwarding, HealthCheck, HealthView, Invalid, Mutation,
    Netmask, Persistence, PersistenceEngine, Protocol, RealServerConfig, RealServerKey, Scheduler,
    SchedulerFlag, SchedulerFlags, ServerHealth, ServiceConfig, ServiceId, ServiceKey, Thresholds,
    Timestamp, Tunnel, Verdict, Weight,
};
use merlin_reconcile::Foreign;
use merlin_reconcile::desired::desired;
use merlin_reconcile::plan::plan;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const IDS: [&str; 6] = ["api", "dns", "ftp", "sip", "ssh", "web"];
/// What kernels everywhere offer.
const SCHEDULERS: [Scheduler; 8] = [
    Scheduler::Rr,
    Scheduler::Wrr,
    Scheduler::Wlc,
    Scheduler::Nq,
    Scheduler::Fo,
    Scheduler::Dh,
    Scheduler::Sh,
    Scheduler::Mh,
];

#[expect(clippy::print_stdout, reason = "what it found is its result")]
fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let steps = arguments.next().map_or(Ok(500), |steps| steps.parse())?;
    let seed = arguments.next().map_or(Ok(1), |seed| seed.parse())?;
    println!("seed {seed}");

    let mut walk = Walk::new(seed)?;
    for step in 0..steps {
        walk.step()
            .map_err(|error| format!("step {step}: {error}"))?;
    }
    println!("{steps} steps, {} operations", walk.operations);
    Ok(())
}

struct Walk {
    kernel: Kernel,
    random: StdRng,
    catalog: Catalog,
    health: HealthView,
    operations: usize,
}

impl Walk {
    fn new(seed: u64) -> Result<Self> {
        let mut kernel = Kernel::open()?;
        let table = kernel.dump()?;
        let empty = table.services.keys().copied().map(Operation::DeleteService);
        kernel.apply(&empty.collect::<Vec<_>>())?;
        Ok(Self {
            kernel,
            random: StdRng::seed_from_u64(seed),
            catalog: Catalog::default(),
            health: HealthView::default(),
            operations: 0,
        })
    }

    fn step(&mut self) -> Result<()> {
        for _ in 0..self.random.random_range(1..20) {
            // Random commands are refused as often as not, which is as good a history.
            let mutation = mutation(&mut self.random)?;
            let _ = self.catalog.apply(&Command::new(Timestamp(0), mutation));
        }
        for _ in 0..self.random.random_range(0..4) {
            self.observe()?;
        }
        if self.random.random_ratio(1, 4) {
            self.meddle()?;
        }
        if self.random.random_ratio(1, 4) {
            let operations = self.plan()?.0;
            let survived = self.random.random_range(0..=operations.len());
            self.carry_out(&operations[..survived])?;
            self.health = HealthView::default();
        }
        self.reconcile()
    }

    /// Makes the kernel's table the wanted one and checks that it is.
    fn reconcile(&mut self) -> Result<()> {
        let (operations, wanted) = self.plan()?;
        self.carry_out(&operations)?;
        let reached = self.kernel.dump()?;
        if !self.catalog.is_pristine() && reached != wanted {
            return Err(format!("wanted {wanted:#?}, got {reached:#?}").into());
        }
        let (again, _) = self.plan()?;
        if !again.is_empty() {
            return Err(format!("not content with its own work: {again:#?}").into());
        }
        let keys: Vec<_> = wanted.services.keys().copied().collect();
        if self.kernel.read(&keys)? != wanted && !self.catalog.is_pristine() {
            return Err("services read one by one are not those of a dump".into());
        }
        Ok(())
    }

    fn plan(&mut self) -> std::result::Result<(Vec<Operation>, Table), DataplaneError> {
        let actual = self.kernel.dump()?;
        let desired = desired(&self.catalog, &self.health);
        let operations = plan(&desired, &actual, Foreign::Delete).operations;
        Ok((operations, desired.given(&actual)))
    }

    fn carry_out(&mut self, operations: &[Operation]) -> Result<()> {
        self.operations += operations.len();
        for (operation, answer) in operations.iter().zip(self.kernel.apply(operations)?) {
            answer.map_err(|refusal| format!("{operation}: {refusal}"))?;
        }
        Ok(())
    }

    /// Does what someone with `ipvsadm` might.
    fn meddle(&mut self) -> Result<()> {
        let table = self.kernel.dump()?;
        let services: Vec<_> = table.services.iter().collect();
        let Some((key, entry)) = services.choose(&mut self.random) else {
            return Ok(());
        };
        let destinations: Vec<_> = entry.destinations.iter().collect();
        let operation = match destinations.choose(&mut self.random) {
            None => Operation::DeleteService(**key),
            Some((at, _)) if self.random.random() => Operation::DeleteDestination(**key, **at),
            Some((at, destination)) => {
                let mut destination = **destination;
                destination.weight = self.random.random_range(0..9);
                destination.upper_threshold = self.random.random_range(9..99);
                Operation::EditDestination(**key, **at, destination)
            }
        };
        self.carry_out(&[operation])
    }

    fn observe(&mut self) -> Result<()> {
        let verdicts = [Verdict::Unknown, Verdict::Up, Verdict::Down];
        let health = ServerHealth {
            verdict: pick(&mut self.random, &verdicts),
            last_failure: None,
        };
        let at = server_key(&mut self.random)?;
        self.health.set(service_id(&mut self.random)?, at, health);
        Ok(())
    }
}

fn mutation(random: &mut StdRng) -> Result<Mutation> {
    let id = service_id(random)?;
    Ok(match random.random_range(0..12) {
        0..4 => {
            let key = service_key(random)?;
            let config = service_config(random, key.family())?;
            Mutation::CreateService { id, key, config }
        }
        4 => Mutation::UpdateService {
            id,
            patch: ServicePatch {
                key: Some(key_patch(service_key(random)?)),
                scheduler: Some(pick(random, &SCHEDULERS)),
                ..ServicePatch::default()
            },
        },
        5 => Mutation::UpdateServer {
            service: id,
            key: server_key(random)?,
            patch: ServerPatch {
                weight: Some(Weight::new(random.random_range(0..9))?),
                ..ServerPatch::default()
            },
        },
        6 => Mutation::DeleteServer {
            service: id,
            key: server_key(random)?,
        },
        7 if random.random() => Mutation::DeleteService { id },
        _ => Mutation::CreateServer {
            service: id,
            key: server_key(random)?,
            config: server_config(random)?,
            check: if random.random() {
                check()?
            } else {
                HealthCheck::default()
            },
        },
    })
}

fn service_id(random: &mut StdRng) -> std::result::Result<ServiceId, Invalid> {
    ServiceId::new(pick(random, &IDS))
}

/// One of few keys of every kind, so that services meet.
fn service_key(random: &mut StdRng) -> Result<ServiceKey> {
    let number = random.random_range(1..4);
    let protocol = pick(random, &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    let address = match random.random_range(0..4) {
        0 => {
            let family = pick(random, &[Family::Ipv4, Family::Ipv6]);
            let mark = NonZeroU32::new(number).ok_or("marks begin at 1")?;
            return Ok(ServiceKey::Fwmark { mark, family });
        }
        1 => format!("fd00::{number}"),
        _ => format!("10.0.0.{number}"),
    };
    Ok(ServiceKey::Address {
        address: address.parse()?,
        port: pick(random, &[0, 80, 443]),
        protocol,
    })
}

fn key_patch(key: ServiceKey) -> KeyPatch {
    match key {
        ServiceKey::Address {
            address,
            port,
            protocol,
        } => KeyPatch::Address {
            address: Some(address),
            port: NonZeroU16::new(port),
            protocol: Some(protocol),
        },
        ServiceKey::Fwmark { mark, family } => KeyPatch::Fwmark {
            mark,
            family: Some(family),
        },
    }
}

fn service_config(random: &mut StdRng, family: Family) -> Result<ServiceConfig> {
    let mut config = ServiceConfig::new(pick(random, &SCHEDULERS));
    let all = [
        SchedulerFlag::Flag1,
        SchedulerFlag::Flag2,
        SchedulerFlag::Flag3,
    ];
    let flags: Vec<_> = all.into_iter().filter(|_| random.random()).collect();
    config.flags = SchedulerFlags::resolve(config.scheduler, &flags)?;
    config.one_packet = random.random_ratio(1, 4);
    if random.random_ratio(1, 3) {
        config.persistence = Some(Persistence {
            timeout: NonZeroU32::new(random.random_range(1..900)).ok_or("timeouts begin at 1")?,
            netmask: Netmask::from_prefix(random.random_range(1..=family.bits().into()))?,
            engine: pick(random, &[None, Some(PersistenceEngine::Sip)]),
        });
    }
    Ok(config)
}

fn server_key(random: &mut StdRng) -> Result<RealServerKey> {
    let number = random.random_range(1..6);
    let address = if random.random_ratio(1, 3) {
        format!("fd01::{number}")
    } else {
        format!("10.1.0.{number}")
    };
    Ok(RealServerKey::new(address.parse()?, 80))
}

fn server_config(random: &mut StdRng) -> Result<RealServerConfig> {
    let tunnel = match random.random_range(0..3) {
        0 => Tunnel::Ipip,
        1 => Tunnel::Gue {
            port: NonZeroU16::new(random.random_range(6000..6003)).ok_or("ports begin at 1")?,
            checksum: pick(random, &[Checksum::None, Checksum::Full, Checksum::Remote]),
        },
        _ => Tunnel::Gre {
            checksum: random.random(),
        },
    };
    let methods = [
        Forwarding::Route,
        Forwarding::Masq,
        Forwarding::Tunnel(tunnel),
    ];
    let weight = Weight::new(random.random_range(0..4))?;
    let lower = random.random_range(0..5);
    Ok(RealServerConfig {
        thresholds: Thresholds::new(lower + random.random_range(0..5), lower)?,
        ..RealServerConfig::new(weight, pick(random, &methods))
    })
}

fn check() -> Result<HealthCheck> {
    Ok(HealthCheck {
        endpoint: Some("http://:80/".parse()?),
        period: HealthCheck::MIN_INTERVAL,
        timeout: HealthCheck::MIN_INTERVAL,
        up_threshold: 1,
        down_threshold: 1,
    })
}

fn pick<T: Copy>(random: &mut StdRng, from: &[T]) -> T {
    from[random.random_range(0..from.len())]
}
