//! Traffic that goes on while something happens, and a count of what it suffered.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::{Answers, Conversation};

/// What a load does.
#[derive(Debug, Clone)]
pub struct LoadPlan {
    pub target: SocketAddr,
    /// Connections opened at the start, which must stay alive to the end.
    pub lasting: usize,
    /// Between two new connections. A guest has one CPU: without a pause the client takes it.
    pub pause: Duration,
    /// After which an unanswered question counts as failed.
    pub timeout: Duration,
}

/// What a load saw.
#[derive(Debug, Clone, Default)]
pub struct LoadReport {
    /// Questions on new connections, each a connection.
    pub fresh: Answers,
    /// Questions on lasting connections.
    pub lasting: Answers,
    /// Lasting connections that broke, or moved to another server.
    pub broken: Vec<String>,
    /// The longest a new connection took from opening to its answer.
    pub slowest: Duration,
}

impl LoadReport {
    /// New connections that were answered or failed.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.fresh.by_server.values().sum::<usize>() + self.fresh.failures.len()
    }

    /// Whether nothing failed, nothing broke, and something was asked at all.
    #[must_use]
    pub fn flawless(&self) -> bool {
        self.opened() > 0 && self.fresh.failures.is_empty() && self.broken.is_empty()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} new connections, slowest {:?}:",
            self.opened(),
            self.slowest
        )?;
        write!(f, "{}", self.fresh)?;
        writeln!(f, "lasting connections, {} broken:", self.broken.len())?;
        write!(f, "{}", self.lasting)?;
        self.broken
            .iter()
            .try_for_each(|what| writeln!(f, "  {what}"))
    }
}

/// A load running on a thread of its own, in the namespace of the thread that started it.
/// Dropping it stops it.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: Option<JoinHandle<LoadReport>>,
}

impl Load {
    /// Opens the lasting connections, then starts asking.
    pub fn start(plan: LoadPlan) -> io::Result<Self> {
        let mut lasting = Vec::with_capacity(plan.lasting);
        for _ in 0..plan.lasting {
            let mut conversation = Conversation::open(plan.target, plan.timeout)?;
            let server = conversation.ask()?;
            lasting.push(Lasting {
                server,
                conversation,
            });
        }
        let stop = Arc::new(AtomicBool::new(false));
        let opened = Arc::default();
        let thread = thread::spawn({
            let (stop, opened) = (Arc::clone(&stop), Arc::clone(&opened));
            move || drive(&plan, lasting, &stop, &opened)
        });
        Ok(Self {
            stop,
            opened,
            thread: Some(thread),
        })
    }

    /// New connections so far.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    /// Asks every lasting connection once more, and reports.
    #[must_use]
    pub fn stop(mut self) -> LoadReport {
        self.finish().unwrap_or_default()
    }

    fn finish(&mut self) -> Option<LoadReport> {
        self.stop.store(true, Ordering::Relaxed);
        // The thread only panics if this program is broken, and then an empty report is a failed
        // test, not a good one: `flawless` demands that something was asked.
        self.thread.take()?.join().ok()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A connection and the server it began with.
struct Lasting {
    server: String,
    conversation: Conversation,
}

fn drive(
    plan: &LoadPlan,
    mut lasting: Vec<Lasting>,
    stop: &AtomicBool,
    opened: &AtomicUsize,
) -> LoadReport {
    let mut report = LoadReport::default();
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        let answer = Conversation::open(plan.target, plan.timeout).and_then(|mut new| new.ask());
        report.slowest = report.slowest.max(started.elapsed());
        report.fresh.record(answer);
        opened.fetch_add(1, Ordering::Relaxed);
        if !lasting.is_empty() {
            turn = (turn + 1) % lasting.len();
            question(&mut lasting, turn, &mut report);
        }
        thread::sleep(plan.pause);
    }
    for index in (0..lasting.len()).rev() {
        question(&mut lasting, index, &mut report);
    }
    report
}

/// Asks one lasting connection, and drops it if it is no longer what it was.
fn question(lasting: &mut Vec<Lasting>, index: usize, report: &mut LoadReport) {
    let Lasting {
        server,
        conversation,
    } = &mut lasting[index];
    let wrong = match conversation.ask() {
        Ok(answer) => {
            let wrong = (answer != *server).then(|| format!("{server} became {answer}"));
            report.lasting.record(Ok(answer));
            wrong
        }
        Err(error) => Some(format!("{server}: {error}")),
    };
    if let Some(wrong) = wrong {
        report.broken.push(wrong);
        lasting.swap_remove(index);
    }
}
