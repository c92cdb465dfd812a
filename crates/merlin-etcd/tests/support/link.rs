//! A network link to a member that can be cut and mended.

use std::net::SocketAddr;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Dropped, it is cut for good.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) url: String,
    cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Link {
    /// A link to the member at the URL.
    pub(crate) async fn to(url: &str) -> Self {
        let target = url.rsplit('/').next().expect("a URL").to_owned();
        let listener = TcpListener::bind((super::address(), 0))
            .await
            .expect("a port");
        let at: SocketAddr = listener.local_addr().expect("its address");
        let (cut, state) = watch::channel(false);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (target, mut state) = (target.clone(), state.clone());
                tokio::spawn(async move {
                    // Both ends see the connection reset when the link is cut.
                    tokio::select! {
                        _ = state.wait_for(|cut| *cut) => {}
                        () = carry(near, &target) => {}
                    }
                });
            }
        });
        Self {
            url: format!("http://{at}"),
            cut,
            task,
        }
    }

    pub(crate) fn cut(&self) {
        self.cut.send_replace(true);
    }

    pub(crate) fn mend(&self) {
        self.cut.send_replace(false);
    }
}

async fn carry(mut near: TcpStream, target: &str) {
    if let Ok(mut far) = TcpStream::connect(target).await {
        let _ = copy_bidirectional(&mut near, &mut far).await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}
