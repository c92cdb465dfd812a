//! Golden scripts: blocks of commands, `---`, and the answers to them.
//!
//! ```text
//! create service web tcp 10.0.0.1:80 rr [OPTION=VALUE]...     create service ftp fwmark 7 rr
//! update service web [OPTION=VALUE]...                        delete service web
//! create server web 10.1.0.1:80 [OPTION=VALUE]...             and so on
//! list
//! ```
//! Every mutation takes `at=`, `request=` and `expect=`. `UPDATE_SCRIPTS=1 cargo test` writes what
//! is answered now, to be reviewed as a difference.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use crate::catalog::{Catalog, Change, RealServer, Revision, VirtualService};
use crate::command::{
    CheckPatch, Command, ForwardingPatch, KeyPatch, Mutation, PersistencePatch, RequestId,
    ServerPatch, ServicePatch, Timestamp,
};
use crate::server::{
    Checksum, Forwarding, HealthCheck, RealServerConfig, RealServerKey, Thresholds, Tunnel, Weight,
};
use crate::service::{
    Family, Protocol, SchedulerFlag, SchedulerFlags, ServiceConfig, ServiceId, ServiceKey,
};

macro_rules! scripts {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            check(stringify!($name));
        })*
    };
}

scripts! {
    ids_and_keys_are_unique
    updates_merge
    keys_change
    flags_are_replaced_or_cleared
    persistence_is_merged_field_by_field
    servers_belong_to_their_service
    health_checks_are_merged_and_checked
    deletions_cascade_and_repeat
    expected_revisions_guard
    requests_are_answered_once
    combinations_the_kernel_cannot_carry
}

fn check(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("src/catalog/tests/scripts")
        .join(name);
    let golden = std::fs::read_to_string(&path).unwrap();
    let answered = run(&golden);
    if std::env::var_os("UPDATE_SCRIPTS").is_some() {
        std::fs::write(&path, answered).unwrap();
    } else {
        assert_eq!(answered, golden, "the answers of {name} have changed");
    }
}

/// Runs the blocks of a script on one catalog and returns the script with the answers as they are.
fn run(script: &str) -> String {
    let mut catalog = Catalog::default();
    let mut output = String::new();
    let mut input = script.lines();
    while let Some(line) = input.next() {
        writeln!(output, "{line}").unwrap();
        match line {
            "---" => {
                // The old answers, up to the blank line that ends the block.
                for _ in input.by_ref().take_while(|line| !line.is_empty()) {}
            }
            _ => continue,
        }
        let block = output.trim_end_matches("---\n");
        let block = block.rsplit("\n\n").next().unwrap_or(block).to_owned();
        for line in block.lines().filter(|line| !line.starts_with('#')) {
            output += &answer(&mut catalog, line);
        }
        output.push('\n');
    }
    output.truncate(output.trim_end().len());
    output + "\n"
}

fn answer(catalog: &mut Catalog, line: &str) -> String {
    if line == "list" {
        return list(catalog);
    }
    let command = match parse(line) {
        Ok(command) => command,
        Err(invalid) => return format!("unreadable: {invalid}\n"),
    };
    match catalog.apply(&command) {
        Ok(applied) => {
            let unchanged = if applied.reply.changed {
                ""
            } else {
                " unchanged"
            };
            let mut text = format!("{}{unchanged}\n", applied.reply.revision);
            for change in &applied.changes {
                writeln!(text, "  {}", Shown(change)).unwrap();
            }
            text
        }
        Err(rejection) => format!("refused: {rejection}\n"),
    }
}

// === reading ===

struct Arguments<'a> {
    positional: std::vec::IntoIter<&'a str>,
    options: BTreeMap<&'a str, &'a str>,
}

impl<'a> Arguments<'a> {
    fn next(&mut self) -> &'a str {
        self.positional.next().expect("an argument")
    }

    fn text(&mut self, name: &str) -> Option<&'a str> {
        self.options.remove(name)
    }

    fn option<T: FromStr>(&mut self, name: &str) -> Option<T>
    where
        T::Err: std::fmt::Debug,
    {
        self.text(name).map(|value| value.parse().unwrap())
    }

    fn seconds(&mut self, name: &str) -> Option<Duration> {
        self.option(name).map(Duration::from_secs_f64)
    }
}

type Parsed<T> = Result<T, crate::service::Invalid>;

pub(super) fn parse(line: &str) -> Parsed<Command> {
    let (options, positional): (Vec<_>, Vec<_>) =
        line.split_whitespace().partition(|word| word.contains('='));
    let mut args = Arguments {
        positional: positional.into_iter(),
        options: options
            .into_iter()
            .map(|option| option.split_once('=').unwrap())
            .collect(),
    };
    let at = Timestamp(args.option("at").unwrap_or_default());
    let command = Command {
        request_id: args.text("request").map(RequestId::new).transpose()?,
        expected_revision: args.option("expect").map(Revision),
        ..Command::new(at, mutation(&mut args)?)
    };
    assert!(args.options.is_empty(), "unknown options in {line:?}");
    Ok(command)
}

fn mutation(args: &mut Arguments<'_>) -> Parsed<Mutation> {
    let (verb, noun) = (args.next(), args.next());
    let id = ServiceId::new(args.next())?;
    Ok(match (verb, noun) {
        ("create", "service") => {
            let key = key(args);
            let config = service_config(args, &key)?;
            Mutation::CreateService { id, key, config }
        }
        ("update", "service") => {
            let patch = service_patch(args)?;
            Mutation::UpdateService { id, patch }
        }
        ("delete", "service") => Mutation::DeleteService { id },
        (_, "server") => {
            let key = RealServerKey::from(args.next().parse::<SocketAddr>().unwrap());
            server_mutation(verb, id, key, args)?
        }
        other => panic!("unknown command {other:?}"),
    })
}

fn key(args: &mut Arguments<'_>) -> ServiceKey {
    let kind = args.next();
    if kind == "fwmark" {
        return ServiceKey::Fwmark {
            mark: args.next().parse().unwrap(),
            family: args.text("family").map_or(Family::Ipv4, family),
        };
    }
    let at: SocketAddr = args.next().parse().unwrap();
    ServiceKey::Address {
        address: at.ip(),
        port: at.port(),
        protocol: protocol(kind),
    }
}

fn service_config(args: &mut Arguments<'_>, key: &ServiceKey) -> Parsed<ServiceConfig> {
    let scheduler = args.next().parse()?;
    let flags = flags(args)?.unwrap_or_default();
    let persistence = match persistence(args)? {
        Some(patch) => patch.merge(None, key.family())?,
        None => None,
    };
    Ok(ServiceConfig {
        scheduler,
        flags: SchedulerFlags::resolve(scheduler, &flags)?,
        persistence,
        one_packet: args.option("ops").unwrap_or_default(),
    })
}

fn service_patch(args: &mut Arguments<'_>) -> Parsed<ServicePatch> {
    let mark: Option<NonZeroU32> = args.option("fwmark");
    let key = match mark {
        Some(mark) => Some(KeyPatch::Fwmark {
            mark,
            family: args.text("family").map(family),
        }),
        None => {
            let address = args.option("ip");
            let port: Option<NonZeroU16> = args.option("port");
            let protocol = args.text("protocol").map(protocol);
            let any = address.is_some() || port.is_some() || protocol.is_some();
            any.then_some(KeyPatch::Address {
                address,
                port,
                protocol,
            })
        }
    };
    Ok(ServicePatch {
        key,
        scheduler: args.option("scheduler"),
        flags: flags(args)?,
        persistence: persistence(args)?,
        one_packet: args.option("ops"),
    })
}

fn flags(args: &mut Arguments<'_>) -> Parsed<Option<Vec<SchedulerFlag>>> {
    let parse = |list: &str| {
        let names = list.split(',').filter(|name| !name.is_empty());
        names.map(str::parse).collect()
    };
    args.text("flags").map(parse).transpose()
}

fn persistence(args: &mut Arguments<'_>) -> Parsed<Option<PersistencePatch>> {
    let patch = PersistencePatch {
        timeout: args.option("persistent"),
        netmask: args.text("netmask").map(str::parse).transpose()?,
        engine: match args.text("engine") {
            None => None,
            Some("") => Some(None),
            Some(name) => Some(Some(name.parse()?)),
        },
    };
    Ok((patch != PersistencePatch::default()).then_some(patch))
}

fn server_mutation(
    verb: &str,
    service: ServiceId,
    key: RealServerKey,
    args: &mut Arguments<'_>,
) -> Parsed<Mutation> {
    if verb == "delete" {
        return Ok(Mutation::DeleteServer { service, key });
    }
    let endpoint = match args.text("endpoint") {
        None => None,
        Some("") => Some(None),
        Some(endpoint) => Some(Some(endpoint.parse()?)),
    };
    let (period, timeout) = (args.seconds("period"), args.seconds("timeout"));
    let weight = args.option("weight").map(Weight::new).transpose()?;
    let forward = args.text("forward");
    let (upper, lower) = (args.option("upper"), args.option("lower"));
    Ok(match verb {
        "create" => Mutation::CreateServer {
            service,
            key,
            config: RealServerConfig {
                weight: weight.unwrap_or(Weight::ZERO),
                forwarding: forward.map_or(Forwarding::Masq, forwarding),
                thresholds: Thresholds::new(upper.unwrap_or(0), lower.unwrap_or(0))?,
            },
            check: HealthCheck {
                endpoint: endpoint.flatten(),
                period: period.unwrap_or_default(),
                timeout: timeout.unwrap_or_default(),
                up_threshold: args.option("up").unwrap_or_default(),
                down_threshold: args.option("down").unwrap_or_default(),
            },
        },
        "update" => Mutation::UpdateServer {
            service,
            key,
            patch: ServerPatch {
                weight,
                forwarding: forward.map(forwarding_patch),
                upper_threshold: upper,
                lower_threshold: lower,
                check: CheckPatch {
                    endpoint,
                    period,
                    timeout,
                    up_threshold: args.option("up"),
                    down_threshold: args.option("down"),
                },
            },
        },
        other => panic!("unknown verb {other:?}"),
    })
}

fn protocol(name: &str) -> Protocol {
    match name {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        other => panic!("unknown protocol {other:?}"),
    }
}

fn family(name: &str) -> Family {
    match name {
        "ipv4" => Family::Ipv4,
        "ipv6" => Family::Ipv6,
        other => panic!("unknown family {other:?}"),
    }
}

fn tunnel(name: &str) -> Tunnel {
    match name.split_once(':') {
        None if name == "ipip" => Tunnel::Ipip,
        None if name == "gre" => Tunnel::Gre { checksum: false },
        Some(("gue", port)) => Tunnel::Gue {
            port: port.parse().unwrap(),
            checksum: Checksum::None,
        },
        _ => panic!("unknown tunnel {name:?}"),
    }
}

fn forwarding(name: &str) -> Forwarding {
    match name {
        "route" => Forwarding::Route,
        "masq" => Forwarding::Masq,
        other => Forwarding::Tunnel(tunnel(other)),
    }
}

fn forwarding_patch(name: &str) -> ForwardingPatch {
    match name {
        "route" => ForwardingPatch::Route,
        "masq" => ForwardingPatch::Masq,
        "tunnel" => ForwardingPatch::Tunnel(None),
        other => ForwardingPatch::Tunnel(Some(tunnel(other))),
    }
}

// === writing ===

fn list(catalog: &Catalog) -> String {
    let mut text = format!("revision {}\n", catalog.revision());
    for service in catalog.services() {
        writeln!(text, "  {}", Shown(&**service)).unwrap();
        for server in service.servers.values() {
            writeln!(text, "    {}", Shown(&**server)).unwrap();
        }
    }
    text
}

struct Shown<'a, T>(&'a T);

impl std::fmt::Display for Shown<'_, Change> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Change::ServicePut(service) => write!(f, "put service {}", Shown(&**service)),
            Change::ServiceDeleted { id, key } => write!(f, "deleted service {id} {key}"),
            Change::ServerPut { service, server } => {
                write!(f, "put server {service} {}", Shown(&**server))
            }
            Change::ServerDeleted { service, key } => write!(f, "deleted server {service} {key}"),
        }
    }
}

impl std::fmt::Display for Shown<'_, VirtualService> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let service = self.0;
        let config = &service.config;
        write!(f, "{} {} {}", service.id, service.key, config.scheduler)?;
        for flag in config.flags.iter() {
            write!(f, " {}", flag.name())?;
        }
        if let Some(persistence) = &config.persistence {
            let netmask = persistence.netmask.prefix();
            write!(f, " persistent {}/{netmask}", persistence.timeout)?;
            if let Some(engine) = persistence.engine {
                write!(f, " {}", engine.name())?;
            }
        }
        if config.one_packet {
            f.write_str(" ops")?;
        }
        write!(f, " [{}..{}]", service.created, service.changed)
    }
}

impl std::fmt::Display for Shown<'_, RealServer> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let server = self.0;
        write!(f, "{} weight {}", server.key, server.config.weight)?;
        match server.config.forwarding {
            Forwarding::Route => f.write_str(" route")?,
            Forwarding::Masq => f.write_str(" masq")?,
            Forwarding::Tunnel(Tunnel::Ipip) => f.write_str(" ipip")?,
            Forwarding::Tunnel(Tunnel::Gue { port, .. }) => write!(f, " gue:{port}")?,
            Forwarding::Tunnel(Tunnel::Gre { .. }) => f.write_str(" gre")?,
        }
        let thresholds = server.config.thresholds;
        if thresholds != Thresholds::default() {
            write!(f, " limit {}..{}", thresholds.lower(), thresholds.upper())?;
        }
        let check = &server.check;
        if *check != HealthCheck::default() {
            match &check.endpoint {
                Some(endpoint) => write!(f, " check {endpoint}")?,
                None => f.write_str(" check off")?,
            }
            write!(
                f,
                " {:?} {:?} {}/{}",
                check.period, check.timeout, check.up_threshold, check.down_threshold
            )?;
        }
        write!(f, " [{}..{}]", server.created, server.changed)
    }
}
