//! The client's connections, and where the kernels of the balancers sent them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::lab::{Family, Lab};
use e2e::peer::{Answers, Load, LoadPlan, Protocol, survey};
use e2e::poll::eventually;

const ANSWER: Duration = Duration::from_secs(1);
/// Between two new connections, to leave the guest's only CPU to others too.
const BREATH: Duration = Duration::from_millis(5);
const SOON: Duration = Duration::from_secs(30);

/// Connections of the client to one service.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traffic {
    target: SocketAddr,
    lasting: usize,
}

impl Traffic {
    pub(crate) fn to(target: SocketAddr) -> Self {
        Self { target, lasting: 0 }
    }

    /// Holds so many connections open besides.
    pub(crate) fn lasting(self, lasting: usize) -> Self {
        Self { lasting, ..self }
    }

    /// So many connections, one after the other.
    pub(crate) fn ask(self, lab: &Lab, connections: usize) -> Result<Answers> {
        let ask = || Ok(survey(Protocol::Tcp, self.target, connections, ANSWER));
        lab.client.namespace.enter(ask)
    }

    /// Connections until stopped.
    pub(crate) fn start(self, lab: &Lab) -> Result<Load> {
        let plan = LoadPlan {
            target: self.target,
            lasting: self.lasting,
            pause: BREATH,
            timeout: ANSWER,
        };
        lab.client.namespace.enter(|| Ok(Load::start(plan)?))
    }
}

/// Lets a load open so many more connections.
pub(crate) fn carry(load: &Load, more: usize) -> Result<()> {
    let goal = load.opened() + more;
    eventually(SOON, || {
        let opened = load.opened();
        ensure!(opened >= goal, "{opened} of {goal} connections");
        Ok(())
    })
}

/// Connections that each balancer's kernel has given to each real server, ever.
#[derive(Debug)]
pub(crate) struct Counters {
    servers: Vec<SocketAddr>,
    kernels: Vec<BTreeMap<SocketAddr, u64>>,
}

impl Counters {
    pub(crate) fn read(lab: &Lab, port: u16) -> Result<Self> {
        let address = |host: &e2e::lab::Host| SocketAddr::new(host.front(Family::V4), port);
        let kernels = lab.balancers.iter().map(|balancer| balancer.connections());
        Ok(Self {
            servers: lab.servers.iter().map(address).collect(),
            kernels: kernels.collect::<Result<_>>()?,
        })
    }

    /// For each kernel, what each real server got since `before`.
    pub(crate) fn since(&self, before: &Self) -> Vec<Vec<u64>> {
        let count = |kernel: &BTreeMap<_, u64>, server| kernel.get(server).copied().unwrap_or(0);
        let kernels = self.kernels.iter().zip(&before.kernels);
        kernels
            .map(|(now, then)| {
                let servers = self.servers.iter();
                let share = |server| count(now, server).saturating_sub(count(then, server));
                servers.map(share).collect()
            })
            .collect()
    }
}
