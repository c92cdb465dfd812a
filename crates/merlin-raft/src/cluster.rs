//! What the cluster has agreed about itself, beside the catalog.

/// The answer to a cluster command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ClusterAnswer {
    Done,
}
