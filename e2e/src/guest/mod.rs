//! One user-mode-Linux guest: boot it, run one command in it, know how it ended.
//!
//! The guest's root is this machine's file system, read-only, under an overlay in the guest's
//! memory: it finds every program at its usual path and changes nothing on the host. It is root
//! in its own kernel and needs no privilege on the host.
//!
//! Invariants:
//!
//! * Output is the command's, byte for byte; the kernel's own messages go to the console log.
//! * A guest never outlives its [`Running`] handle, nor the process that holds the handle. A
//!   keeper process waits for either to go and then kills the guest's whole process group and
//!   removes its files, so not even `kill -9` of a harness leaves anything behind.
//! * A guest that hangs is killed [`HOST_GRACE`] after its command should have been stopped.
//! * A guest runs on one host CPU. User-mode Linux is single-processor, and being moved from one
//!   CPU to another makes it several times slower and its timing erratic.

mod requirements;
mod running;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statvfs::statvfs;
use thiserror::Error;

pub use requirements::{Missing, requirements};
pub use running::Running;

/// What a guest may take on top of its command's time-out: booting, and powering off.
pub const HOST_GRACE: Duration = Duration::from_secs(30);

/// Where a guest's memory is best kept, and what must be free there; some containers allow 64 MB.
const FAST_MEMORY: &str = "/dev/shm";
const FAST_MEMORY_FREE: u64 = 2 << 30;

/// Set in every guest, so that a program can tell on which side it is.
const INSIDE: &str = "E2E_GUEST";

/// What passes from the harness's environment to the command without being asked for.
const INHERITED: [&str; 5] = ["HOME", "PATH", "LANG", "RUST_BACKTRACE", "RUST_LOG"];

/// Whether this process runs inside a guest.
#[must_use]
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// A guest to be booted: a command, and the machine to run it on.
#[derive(Debug)]
pub struct Guest {
    command: Vec<OsString>,
    memory: String,
    timeout: Duration,
    host_grace: Duration,
    environment: Vec<(String, OsString)>,
    disks: Vec<PathBuf>,
    cpu: Option<usize>,
    capture: bool,
}

/// How a guest's command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// The command's exit code; 128 + N if signal N ended it, 124 if it ran into its time-out.
    pub code: u8,
}

/// Why there is no exit code.
#[derive(Debug, Error)]
pub enum GuestError {
    #[error(transparent)]
    Missing(#[from] Missing),
    #[error("cannot prepare a run directory for the guest")]
    RunDirectory(#[source] io::Error),
    #[error("cannot start {program}")]
    Start {
        program: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot wait for the guest")]
    Wait(#[source] Errno),
    #[error("the guest died ({status}); its last console lines:\n{console}")]
    Died { status: String, console: String },
    #[error("the guest hung and was killed after {}; its last console lines:\n{console}", .after.as_secs_f32())]
    Hung { after: Duration, console: String },
}

impl Guest {
    /// A guest that runs `program`, found as the host would find it.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            command: vec![program.into()],
            memory: "512M".to_owned(),
            timeout: Duration::from_secs(120),
            host_grace: HOST_GRACE,
            environment: Vec::new(),
            disks: Vec::new(),
            cpu: None,
            capture: false,
        }
    }

    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<OsString>>) -> Self {
        self.command.extend(args.into_iter().map(Into::into));
        self
    }

    /// Memory as the kernel's command line spells it (`512M`, `2G`). Only touched pages cost.
    #[must_use]
    pub fn memory(mut self, memory: impl Into<String>) -> Self {
        self.memory = memory.into();
        self
    }

    /// How long the command may run before it is stopped inside the guest.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// How long after the time-out a guest counts as hung; [`HOST_GRACE`] unless told.
    #[must_use]
    pub fn host_grace(mut self, grace: Duration) -> Self {
        self.host_grace = grace;
        self
    }

    /// Sets a variable in the command's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Adds a disk: the first is `/dev/ubda`, the second `/dev/ubdb`. What the guest synced to it
    /// survives [`Running::cut_power`], the rest does not. The command must `modprobe ext4` and
    /// mount it.
    #[must_use]
    pub fn disk(mut self, image: impl Into<PathBuf>) -> Self {
        self.disks.push(image.into());
        self
    }

    /// Pins the guest to this host CPU instead of one chosen from the harness's process id.
    #[must_use]
    pub fn cpu(mut self, cpu: usize) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Hands output to the caller through [`Running::stdout`] and [`Running::stderr`] instead of
    /// passing it on. A caller that takes neither must not let the guest write much.
    #[must_use]
    pub fn capture(mut self) -> Self {
        self.capture = true;
        self
    }

    /// Boots, runs the command, waits for it.
    pub fn run(self) -> Result<Exit, GuestError> {
        self.start()?.wait()
    }

    /// Boots.
    pub fn start(self) -> Result<Running, GuestError> {
        requirements()?;
        let directory = self.prepare_directory().map_err(GuestError::RunDirectory)?;
        match self.boot(&directory) {
            Ok(running) => Ok(running),
            Err(error) => {
                // No keeper yet to do it; a failure to clean up must not hide why.
                let _ = fs::remove_dir_all(&directory);
                Err(error)
            }
        }
    }

    fn prepare_directory(&self) -> io::Result<PathBuf> {
        let directory = tempfile::Builder::new()
            .prefix("e2e-guest-")
            .tempdir()?
            .keep();
        fs::write(directory.join("command.sh"), self.command_script()?)?;
        let init = directory.join("init.sh");
        fs::write(&init, include_str!("init.sh"))?;
        fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(directory)
    }

    fn command_script(&self) -> io::Result<Vec<u8>> {
        let mut script = Vec::new();
        let mut line = |words: &[&OsStr]| {
            let quoted: Vec<Vec<u8>> = words.iter().map(|word| shell_quoted(word)).collect();
            script.extend(quoted.join(&b' '));
            script.push(b'\n');
        };
        line(&["cd".as_ref(), std::env::current_dir()?.as_os_str()]);
        let inherited = INHERITED
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), std::env::var_os(name)?)));
        let asked = self.environment.iter().cloned();
        for (name, value) in inherited
            .chain(asked)
            .chain([(INSIDE.to_owned(), "1".into())])
        {
            let mut assignment = OsString::from(name);
            assignment.push("=");
            assignment.push(value);
            if assignment.as_encoded_bytes().starts_with(b"PATH=") {
                // The command is root, whoever started it.
                assignment.push(":/usr/local/sbin:/usr/sbin:/sbin");
            }
            line(&["export".as_ref(), &assignment]);
        }
        let seconds = format!("{}", self.timeout.as_secs_f64());
        let mut words = ["exec", "timeout", "-k", "5", &seconds]
            .map(OsStr::new)
            .to_vec();
        words.extend(self.command.iter().map(OsString::as_os_str));
        line(&words);
        Ok(script)
    }

    fn boot(&self, directory: &Path) -> Result<Running, GuestError> {
        let console = File::create(directory.join("console")).map_err(GuestError::RunDirectory)?;
        let mut guest = self
            .kernel_command(directory)
            // Nothing reads the guest's input, so descriptor 0 is free to be the console log.
            .stdin(console)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| GuestError::Start {
                program: "linux.uml",
                source,
            })?;
        let keeper = Command::new("sh")
            .args(["-c", include_str!("keeper.sh"), "keeper.sh"])
            .arg(guest.id().to_string())
            .arg(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: a Ctrl-C meant for the harness must not take the keeper along.
            .process_group(0)
            .spawn();
        let keeper = match keeper {
            Ok(keeper) => keeper,
            Err(source) => {
                let _ = guest.kill();
                let _ = guest.wait();
                return Err(GuestError::Start {
                    program: "sh",
                    source,
                });
            }
        };
        let limit = self.timeout + self.host_grace;
        let mut running = Running::new(directory.to_owned(), limit, guest, keeper);
        if !self.capture {
            running.pass_output_on();
        }
        Ok(running)
    }

    /// `setsid` runs first and replaces itself twice, so the process started here *is* the kernel
    /// and leads the group that holds every process of the guest.
    fn kernel_command(&self, directory: &Path) -> Command {
        let cpu = self.cpu.unwrap_or_else(|| {
            let cpus = thread::available_parallelism().map_or(1, usize::from);
            std::process::id() as usize % cpus
        });
        let shown = directory.display();
        let mut command = Command::new("setsid");
        command
            .args(["taskset", "-c", &cpu.to_string(), "linux.uml"])
            .args(["umid=guest".to_owned(), format!("uml_dir={shown}/")])
            .args(["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"])
            .args([
                format!("mem={}", self.memory),
                format!("init={shown}/init.sh"),
            ])
            // What the kernel does not know becomes the environment of init.
            .arg(format!("E2E_DIR={shown}"))
            .args([
                "con=null",
                "con0=null,fd:0",
                "con1=null,fd:1",
                "con2=null,fd:2",
            ])
            .args(["ssl=null", "noreboot", "quiet"]);
        for (index, image) in self.disks.iter().enumerate() {
            let mut disk = OsString::from(format!("ubd{index}="));
            disk.push(image);
            command.arg(disk);
        }
        // The guest's memory is a deleted file here. On a disk it would be written back.
        if statvfs(FAST_MEMORY)
            .is_ok_and(|shm| shm.blocks_available() * shm.fragment_size() >= FAST_MEMORY_FREE)
        {
            command.env("TMPDIR", FAST_MEMORY);
        }
        command
    }
}

/// Quoted for any POSIX shell, whatever bytes it holds.
fn shell_quoted(word: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for &byte in word.as_encoded_bytes() {
        match byte {
            b'\'' => quoted.extend(br"'\''"),
            byte => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_survives_a_shell() {
        let nasty = "it's \"$HOME\" `x` \\ * \n;";
        let mut script = b"printf %s ".to_vec();
        script.extend(shell_quoted(nasty.as_ref()));
        let script = String::from_utf8(script).unwrap();
        let printed = Command::new("sh")
            .args(["-c", &script])
            .output()
            .unwrap()
            .stdout;
        assert_eq!(String::from_utf8(printed).unwrap(), nasty);
    }
}
