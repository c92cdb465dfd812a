//! merlin-raft

mod cluster;
mod codec;
mod proposal;
mod snapshot;
mod state;
mod typ;

mod identity {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct ClusterId([u8; 16]);
    impl ClusterId {
        pub(crate) const fn from_bytes(bytes: [u8; 16]) -> Self {
            Self(bytes)
        }
        pub(crate) const fn as_bytes(&self) -> &[u8; 16] {
            &self.0
        }
    }
}
