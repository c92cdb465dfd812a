//! Whole nodes in one process: real stores, TLS over the loopback interface, tokens as text.

use std::time::Duration;

use merlin_model::store::Consistency;
use merlin_model::{Actor, Catalog, Revision};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::*;
use crate::datadir::NodeFile;
use crate::identity::{EnrollmentAnswer, EnrollmentCommand};
use crate::state::tests::create;
use crate::testing::TIMERS;
use crate::{Config, NewToken, OpenError, RaftStore};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A node that runs, stops and runs again.
pub(crate) struct Node {
    pub(crate) dir: TempDir,
    pub(crate) addr: SocketAddr,
    store: Option<RaftStore>,
}

impl Node {
    pub(crate) async fn new() -> Self {
        // A port nobody else was given; it has to be known before the node listens.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            dir: tempfile::tempdir().unwrap(),
            addr: listener.local_addr().unwrap(),
            store: None,
        }
    }

    pub(crate) async fn founder() -> Self {
        let mut node = Self::new().await;
        node.start().await.unwrap();
        node
    }

    pub(crate) async fn start(&mut self) -> Result<(), OpenError> {
        let config = Config {
            data_dir: self.dir.path().join("data"),
            node_name: "node".into(),
            advertise: self.addr.to_string(),
            advertise_guessed: false,
            peer_addr: self.addr,
            timers: TIMERS,
            level: Level::LATEST,
            snapshot_every: None,
        };
        self.store = Some(RaftStore::open(config).await?);
        Ok(())
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(store) = self.store.take() {
            store.shutdown().await;
        }
    }

    pub(crate) fn store(&self) -> &RaftStore {
        self.store.as_ref().unwrap()
    }

    pub(crate) async fn token(&self, role: Role) -> Token {
        let new = NewToken {
            role,
            ..NewToken::default()
        };
        let token = self
            .store()
            .create_token(new, Actor::Unknown, PATIENCE)
            .await
            .unwrap();
        token.to_string().parse().unwrap()
    }

    pub(crate) fn joining(&self, token: &Token) -> Join {
        Join {
            level: Level::LATEST,
            data_dir: self.dir.path().join("data"),
            token: token.clone(),
            name: "node".into(),
            advertise: self.addr,
            discard_local_state: false,
        }
    }

    pub(crate) async fn join(&self, token: &Token) -> Result<Joined, JoinError> {
        join(self.joining(token)).await
    }

    /// Waits until the node has applied a revision.
    pub(crate) async fn applied(&self, revision: u64) -> Arc<Catalog> {
        let mut catalog = self.store().catalog();
        let reached = catalog.wait_for(|catalog| catalog.revision() >= Revision(revision));
        let reached = timeout(PATIENCE, reached).await;
        reached.expect("the revision arrives").unwrap().clone()
    }

    /// Waits until this node sees `node` take the part of a voter or a learner.
    pub(crate) async fn sees(&self, node: u64, voter: bool) {
        let seen = async {
            loop {
                let members = self.store().status().members;
                let found = members.iter().find(|member| member.id == node);
                if found.is_some_and(|member| (member.role != crate::Role::Learner) == voter) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, seen).await.expect("the member is there");
    }
}

fn node_of(joined: &Joined) -> u64 {
    match joined {
        Joined::Already(name) | Joined::Now { name, .. } => name.node,
    }
}

#[tokio::test]
async fn nodes_that_join_get_the_catalog_and_a_vote() {
    let one = Node::founder().await;
    one.store().propose(create(1), PATIENCE).await.unwrap();

    let token = one.token(Role::Voter).await;
    let mut two = Node::new().await;
    let joined = two.join(&token).await.unwrap();
    assert_eq!(node_of(&joined), 2);
    two.start().await.unwrap();
    two.applied(1).await;
    one.sees(2, true).await;

    // The third asks the second, which does not lead, and stays without a vote.
    let mut token = one.token(Role::Learner).await;
    token.addresses = vec![two.addr];
    let mut three = Node::new().await;
    assert_eq!(node_of(&three.join(&token).await.unwrap()), 3);
    three.start().await.unwrap();
    three.applied(1).await;
    one.sees(3, false).await;

    // Every one of them takes writes and reads what the others wrote.
    for (n, node) in [(2, &two), (3, &three), (4, &one)] {
        node.store().propose(create(n), PATIENCE).await.unwrap();
        let read = three.store().read(Consistency::Linearizable, PATIENCE);
        assert_eq!(read.await.unwrap().revision(), Revision(n));
    }
    for mut node in [one, two, three] {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_member_stays_the_member_it_is() {
    let mut one = Node::founder().await;
    let token = one.token(Role::Voter).await;
    let mut two = Node::new().await;
    let joined = two.join(&token).await.unwrap();
    two.start().await.unwrap();
    one.sees(2, true).await;
    two.stop().await;

    // Also when nobody is there to ask, as at a restart with the token still configured.
    one.stop().await;
    let again = two.join(&token).await.unwrap();
    assert_eq!(
        again,
        Joined::Already(PeerName {
            node: node_of(&joined),
            cluster: token.cluster
        })
    );
    two.start().await.unwrap();
    assert_eq!(two.store().node_id(), 2);
    two.stop().await;
}

#[tokio::test]
async fn a_node_that_only_made_itself_a_cluster_joins_silently() {
    let mut one = Node::founder().await;
    let mut two = Node::founder().await;
    two.stop().await;
    two.start().await.unwrap();
    two.stop().await;

    let token = one.token(Role::Voter).await;
    match two.join(&token).await.unwrap() {
        Joined::Now {
            discarded, name, ..
        } => {
            assert_eq!(discarded, None);
            assert_eq!(name.node, 2);
        }
        other => panic!("{other:?}"),
    }
    two.start().await.unwrap();
    one.sees(2, true).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_node_with_a_catalog_is_not_given_up_unless_that_is_said() {
    let mut one = Node::founder().await;
    let mut two = Node::founder().await;
    two.store().propose(create(1), PATIENCE).await.unwrap();
    two.stop().await;

    let token = one.token(Role::Voter).await;
    let error = two.join(&token).await.unwrap_err();
    assert!(matches!(error, JoinError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("--discard-local-state"));
    two.start().await.unwrap();
    assert_eq!(two.store().catalog().borrow().revision(), Revision(1));
    two.stop().await;

    let discard = Join {
        discard_local_state: true,
        ..two.joining(&token)
    };
    match join(discard).await.unwrap() {
        Joined::Now { discarded, .. } => {
            let discarded = discarded.unwrap();
            assert!(discarded.join("log").is_dir());
            assert!(discarded.join("node.json").is_file());
            assert!(discarded.join("node.pem").is_file());
        }
        other => panic!("{other:?}"),
    }
    two.start().await.unwrap();
    one.sees(2, true).await;
    assert_eq!(two.store().catalog().borrow().revision(), Revision(0));
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn an_interrupted_join_goes_on_as_the_same_node() {
    let mut one = Node::founder().await;
    let token = one.token(Role::Voter).await;
    let mut two = Node::new().await;

    // The cluster let the node in, and the node never heard of it.
    let place = Place::open(two.dir.path().join("data")).await.unwrap();
    let applicant = Applicant {
        level: Level::LATEST,
        key: place.joining_key().await.unwrap(),
        name: "node".into(),
        advertise: two.addr,
    };
    let enrolled = enroll(&token, &applicant).await.unwrap();
    assert_eq!(enrolled.identity.name().node, 2);

    // It got as far as its name, and was started instead of joined.
    let name = enrolled.identity.name();
    let file = NodeFile {
        cluster: name.cluster,
        node: name.node,
        incarnation: enrolled.incarnation,
    };
    place.dir.set_node(&file).unwrap();
    drop(place);
    let refused = two.start().await.unwrap_err();
    assert!(matches!(refused, OpenError::NoAuthority), "{refused}");

    assert_eq!(node_of(&two.join(&token).await.unwrap()), 2);
    two.start().await.unwrap();
    one.sees(2, true).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_refused_join_leaves_the_node_as_it_was() {
    let mut one = Node::founder().await;
    let mut two = Node::founder().await;
    let cluster = two.store().cluster_id();
    two.stop().await;

    let token = one.token(Role::Voter).await;
    let revoked = EnrollmentCommand::RevokeToken(token.id);
    let answer = one
        .store()
        .enroll(revoked, Actor::Unknown, PATIENCE)
        .await
        .unwrap();
    assert_eq!(answer, EnrollmentAnswer::Done);
    let error = two.join(&token).await.unwrap_err();
    assert!(
        matches!(error, JoinError::Enroll(EnrollError::Refused { .. })),
        "{error}"
    );
    two.start().await.unwrap();
    assert_eq!(two.store().cluster_id(), cluster);
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn a_running_node_does_not_join() {
    let mut one = Node::founder().await;
    let mut two = Node::founder().await;
    let token = one.token(Role::Voter).await;
    let error = two.join(&token).await.unwrap_err();
    assert!(
        matches!(error, JoinError::DataDir(DataDirError::InUse { .. })),
        "{error}"
    );
    one.stop().await;
    two.stop().await;
}
