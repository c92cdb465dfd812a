//! A guest while it runs, and how it ends.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::{Exit, GuestError};

/// How often a running guest is looked at. Far below its boot time, far above the cost.
const POLL: Duration = Duration::from_millis(10);

const CONSOLE_TAIL_LINES: usize = 40;

/// A booted guest. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    directory: PathBuf,
    limit: Duration,
    started: Instant,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    pumps: Vec<JoinHandle<()>>,
    /// Closing it is what makes the keeper act.
    leash: Option<ChildStdin>,
    keeper: Child,
    guest: Child,
}

impl Running {
    pub(super) fn new(
        directory: PathBuf,
        limit: Duration,
        mut guest: Child,
        mut keeper: Child,
    ) -> Self {
        Self {
            directory,
            limit,
            started: Instant::now(),
            stdout: guest.stdout.take(),
            stderr: guest.stderr.take(),
            pumps: Vec::new(),
            leash: keeper.stdin.take(),
            keeper,
            guest,
        }
    }

    /// Copies the command's output to this process's.
    pub(super) fn pass_output_on(&mut self) {
        let stdout = self.stdout.take().map(|from| pump(from, io::stdout()));
        let stderr = self.stderr.take().map(|from| pump(from, io::stderr()));
        self.pumps.extend(stdout.into_iter().chain(stderr));
    }

    /// The command's standard output, once, if [it was asked for](super::Guest::capture).
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.stdout.take()
    }

    /// The command's standard error, likewise.
    pub fn stderr(&mut self) -> Option<ChildStderr> {
        self.stderr.take()
    }

    /// The host's process id of the guest's kernel, which is also its process group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.guest.id()
    }

    /// Everything the guest's kernel and init have said so far.
    #[must_use]
    pub fn console(&self) -> String {
        let log = fs::read(self.directory.join("console")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Waits for the command to end, and the guest with it.
    pub fn wait(mut self) -> Result<Exit, GuestError> {
        while !self.ended()? {
            let after = self.started.elapsed();
            if after > self.limit {
                return Err(GuestError::Hung {
                    after,
                    console: tail(&self.console()),
                });
            }
            thread::sleep(POLL);
        }
        let code = fs::read_to_string(self.directory.join("code"));
        let console = self.console();
        let status = self.clean_up();
        for pump in self.pumps.drain(..) {
            // A pump only copies; it has nothing to report that its reader has not seen.
            let _ = pump.join();
        }
        match code.ok().and_then(|code| code.trim().parse().ok()) {
            Some(code) => Ok(Exit { code }),
            None => Err(GuestError::Died {
                status: describe(status),
                console: tail(&console),
            }),
        }
    }

    /// Stops the guest between two instructions, as a power cut would.
    pub fn cut_power(self) {
        drop(self);
    }

    /// Whether the kernel has ended. It is left a zombie, so that its process group id stays
    /// taken until the keeper has killed the group.
    fn ended(&self) -> Result<bool, GuestError> {
        let pid = Pid::from_raw(self.guest.id().cast_signed());
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        match waitid(Id::Pid(pid), flags) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => Ok(false),
            Ok(_) => Ok(true),
            Err(errno) => Err(GuestError::Wait(errno)),
        }
    }

    /// The one way a guest ends; doing it twice does no harm.
    fn clean_up(&mut self) -> io::Result<ExitStatus> {
        drop(self.leash.take());
        self.keeper.wait()?;
        self.guest.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.clean_up();
    }
}

/// Copies until either end closes. Our own descriptor is never handed to the guest: were it a
/// terminal, the guest would set it to raw mode, and a killed guest would leave it so.
fn pump(
    mut from: impl io::Read + Send + 'static,
    mut to: impl Write + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 16 * 1024];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if to
                .write_all(&buffer[..length])
                .and_then(|()| to.flush())
                .is_err()
            {
                break;
            }
        }
    })
}

fn describe(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => match status.signal() {
            Some(signal) => format!("linux.uml: signal {signal}"),
            None => format!("linux.uml: {status}"),
        },
        Err(error) => error.to_string(),
    }
}

fn tail(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    let from = lines.len().saturating_sub(CONSOLE_TAIL_LINES);
    lines[from..].iter().fold(String::new(), |mut text, line| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  | {line}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_console_is_shown_by_its_end() {
        let console: String = (0..100).map(|line| format!("line {line}\n")).collect();
        let shown = tail(&console);
        assert_eq!(shown.lines().count(), CONSOLE_TAIL_LINES);
        assert!(shown.ends_with("  | line 99\n"));
    }
}
