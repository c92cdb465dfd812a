//! etcd as its users run it: one member or three, on loopback, ended when dropped.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;

use crate::config::Tls;

const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Etcd {
    members: Vec<Member>,
    dir: TempDir,
}

struct Member {
    command: Command,
    child: Child,
    client: String,
    data: PathBuf,
}

impl Etcd {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::members(1, "http", args, TempDir::new().unwrap())
    }

    pub(crate) fn cluster() -> Self {
        Self::members(3, "http", &[], TempDir::new().unwrap())
    }

    /// One member that shows a certificate and wants to see one.
    pub(crate) fn secured() -> (Self, Tls) {
        let dir = TempDir::new().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let issue = || {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &ca).unwrap();
            (
                certificate.pem().into_bytes(),
                key.serialize_pem().into_bytes(),
            )
        };
        let (certificate, key) = issue();
        let file = |name: &str, text: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let pem = ca.pem().into_bytes();
        let (ca_file, cert_file) = (file("ca.pem", &pem), file("cert.pem", &certificate));
        let key_file = file("key.pem", &key);
        let args = [
            "--cert-file",
            &cert_file,
            "--key-file",
            &key_file,
            "--trusted-ca-file",
            &ca_file,
            "--client-cert-auth",
        ];
        let (certificate, key) = issue();
        let tls = Tls {
            ca: Some(ca_file.clone().into()),
            identity: Some((
                file("client.pem", &certificate).into(),
                file("client.key", &key).into(),
            )),
        };
        (Self::members(1, "https", &args, dir), tls)
    }

    fn members(count: usize, scheme: &str, args: &[&str], dir: TempDir) -> Self {
        // Bound together, so that they differ; free again a moment later.
        let sockets: Vec<_> = (0..2 * count)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let addresses: Vec<_> = sockets.iter().map(|s| s.local_addr().unwrap()).collect();
        drop(sockets);
        let (clients, peers) = addresses.split_at(count);
        let names = peers.iter().enumerate();
        let names: Vec<_> = names
            .map(|(at, peer)| format!("m{at}=http://{peer}"))
            .collect();
        let names = names.join(",");
        let members = clients.iter().zip(peers).enumerate();
        let members: Vec<_> = members
            .map(|(at, (client, peer))| {
                let name = format!("m{at}");
                let client = format!("{scheme}://{client}");
                let peer = format!("http://{peer}");
                let log = std::fs::File::create(dir.path().join(format!("{name}.log"))).unwrap();
                let data = dir.path().join(&name);
                let mut command = Command::new("etcd");
                command
                    .args(["--enable-v2=true", "--name", &name])
                    .arg("--data-dir")
                    .arg(&data)
                    .args([
                        "--listen-client-urls",
                        &client,
                        "--advertise-client-urls",
                        &client,
                    ])
                    .args([
                        "--listen-peer-urls",
                        &peer,
                        "--initial-advertise-peer-urls",
                        &peer,
                    ])
                    .args(["--initial-cluster", &names])
                    .args(args)
                    .stdout(Stdio::null())
                    .stderr(log);
                let child = command.spawn().unwrap();
                Member {
                    command,
                    child,
                    client,
                    data,
                }
            })
            .collect();
        let etcd = Self { members, dir };
        etcd.wait_until_ready();
        etcd
    }

    /// A member says so in its log.
    fn wait_until_ready(&self) {
        for at in 0..self.members.len() {
            let log = self.dir.path().join(format!("m{at}.log"));
            eventually("etcd is ready", || {
                read(&log).contains("ready to serve client requests")
            });
        }
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|member| member.client.clone())
            .collect()
    }

    pub(crate) fn signal(&self, member: usize, signal: Signal) {
        let pid = Pid::from_raw(self.members[member].child.id().try_into().unwrap());
        kill(pid, signal).unwrap();
    }

    /// The only member starts again with nothing.
    pub(crate) fn wipe(&mut self) {
        let member = &mut self.members[0];
        member.child.kill().unwrap();
        member.child.wait().unwrap();
        std::fs::remove_dir_all(&member.data).unwrap();
        member.child = member.command.spawn().unwrap();
    }

    /// From now on nobody but this user may do anything.
    pub(crate) fn require_password(&self, user: &str, password: &str) {
        let body = format!(r#"{{"user":"{user}","password":"{password}"}}"#);
        self.put(&format!("/v2/auth/users/{user}"), &body);
        self.put("/v2/auth/enable", "");
        let guest = r#"{"role":"guest","revoke":{"kv":{"read":["/*"],"write":["/*"]}}}"#;
        let basic = base64::Engine::encode(
            &base64::engine::general_purpose::STANDARD,
            format!("{user}:{password}"),
        );
        self.put_as(
            "/v2/auth/roles/guest",
            guest,
            &format!("Authorization: Basic {basic}\r\n"),
        );
    }

    fn put(&self, path: &str, body: &str) {
        self.request("PUT", path, body);
    }

    fn put_as(&self, path: &str, body: &str, header: &str) {
        self.request_as("PUT", path, body, header);
    }

    /// As an operator with curl.
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) {
        self.request_as(method, path, body, "");
    }

    fn request_as(&self, method: &str, path: &str, body: &str, header: &str) {
        let address = self.members[0].client.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{header}\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 20"), "{path}: {answer}");
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.child.kill();
            let _ = member.child.wait();
        }
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
