//! What the kernel's table should hold: the catalog, weighted by health.
//!
//! Pure. A wanted destination says what it should become given what it is, because one rule
//! depends on that: a checked server without a verdict takes as much traffic as it took before.

use std::collections::BTreeMap;
use std::sync::Arc;

use merlin_model::table::{Destination, DestinationKey, Entry, Key, Service, Table};
use merlin_model::{
    Catalog, HealthView, RealServer, ServiceId, ServiceKey, Verdict, VirtualService,
};

use crate::mutants;

/// How much of its configured traffic a destination gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// The configured weight: the server is up, or nobody checks it.
    Full,
    /// Weight 0: the server is down. Established connections go on.
    Drained,
    /// No verdict yet, so nothing that would make a difference: a destination that takes traffic
    /// goes on taking it, at the configured weight, and one that takes none stays out.
    AsBefore,
}

/// A destination as it is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WantedDestination {
    /// Its settings, with the configured weight.
    pub settings: Destination,
    pub traffic: Traffic,
}

/// A virtual service as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub id: ServiceId,
    pub service: Service,
    pub destinations: BTreeMap<DestinationKey, WantedDestination>,
}

/// The wanted state of a table or of some of its services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub services: BTreeMap<Key, Wanted>,
    /// Keys that declared services held and nobody holds any more. They go whatever the policy for
    /// foreign entries is.
    pub released: BTreeMap<Key, ServiceId>,
    /// The catalog has never held a service, so that it is no reason to delete anything.
    pub pristine: bool,
}

/// The wanted state of the whole table.
pub fn desired(catalog: &Catalog, health: &HealthView) -> Desired {
    of_services(catalog, health, catalog.services())
}

/// The wanted state of the named services alone; costs what they hold.
pub fn desired_services<'a>(
    catalog: &Catalog,
    health: &HealthView,
    ids: impl IntoIterator<Item = &'a ServiceId>,
) -> Desired {
    let services = ids.into_iter().filter_map(|id| catalog.service(id));
    of_services(catalog, health, services)
}

fn of_services<'a>(
    catalog: &Catalog,
    health: &HealthView,
    services: impl Iterator<Item = impl AsRef<VirtualService> + 'a>,
) -> Desired {
    Desired {
        services: services
            .map(|service| wanted(service.as_ref(), health))
            .collect(),
        released: BTreeMap::new(),
        pristine: catalog.is_pristine(),
    }
}

/// One service's wanted state and the key it is wanted under.
pub(crate) fn wanted(service: &VirtualService, health: &HealthView) -> (Key, Wanted) {
    let kept = |server: &&Arc<RealServer>| {
        !mutants::deletes_the_sick() || traffic(&service.id, server, health) != Traffic::Drained
    };
    let servers = service.servers.values().filter(kept);
    let destinations = servers.map(|server| {
        let wanted = WantedDestination {
            settings: Destination::from(&server.config),
            traffic: traffic(&service.id, server, health),
        };
        (server.key, wanted)
    });
    let wanted = Wanted {
        id: service.id.clone(),
        service: Service::new(&service.config, service.key.family()),
        destinations: destinations.collect(),
    };
    (Key::from(&service.key), wanted)
}

fn traffic(service: &ServiceId, server: &RealServer, health: &HealthView) -> Traffic {
    if server.check.spec().is_none() {
        return Traffic::Full;
    }
    match health.verdict(service, &server.key) {
        Verdict::Up => Traffic::Full,
        Verdict::Down => Traffic::Drained,
        Verdict::Unknown => Traffic::AsBefore,
    }
}

// === impl Desired ===

impl Desired {
    /// Adds keys that are to be deleted although the catalog no longer knows them.
    #[must_use]
    pub fn releasing<'a>(
        mut self,
        keys: impl IntoIterator<Item = (&'a ServiceKey, &'a ServiceId)>,
    ) -> Self {
        let keys = keys
            .into_iter()
            .map(|(key, id)| (Key::from(key), id.clone()));
        self.released.extend(keys);
        self
    }

    /// The keys under which the table can hold anything this is about.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.services.keys().chain(self.released.keys())
    }

    /// The declared service that holds or held a key; `None` for a foreign one.
    pub fn owner(&self, key: &Key) -> Option<&ServiceId> {
        self.services
            .get(key)
            .map(|wanted| &wanted.id)
            .or_else(|| self.released.get(key))
    }

    /// The wanted services as a table, given what the table holds now.
    pub fn given(&self, actual: &Table) -> Table {
        let services = self
            .services
            .iter()
            .map(|(key, wanted)| (*key, wanted.given(actual.services.get(key))));
        Table {
            services: services.collect(),
        }
    }
}

impl Wanted {
    fn given(&self, actual: Option<&Entry>) -> Entry {
        let current = |at| actual.and_then(|entry| entry.destinations.get(at));
        let destinations = self
            .destinations
            .iter()
            .map(|(at, wanted)| (*at, wanted.given(current(at))));
        Entry {
            service: self.service.clone(),
            destinations: destinations.collect(),
        }
    }
}

impl WantedDestination {
    /// The destination this should become, given what it is now.
    pub fn given(&self, current: Option<&Destination>) -> Destination {
        let open = match self.traffic {
            Traffic::Full => true,
            Traffic::Drained => false,
            Traffic::AsBefore => current.is_some_and(|current| current.weight > 0),
        };
        Destination {
            weight: if open { self.settings.weight } else { 0 },
            ..self.settings
        }
    }
}
