//! Programs as child processes in namespaces: started, counted, killed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use harness::namespaces::Namespace;

use super::Failure;

/// Says which programs are missing.
pub fn check_programs() -> Result<(), Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let present = |name: &str| std::env::split_paths(&path).any(|directory| directory.join(name).exists());
    let needed = ["ip", "setpriv", "stdbuf", "chronyd", "chronyc", "ptp4l", "pmc"];
    let missing: Vec<&str> = needed.into_iter().filter(|name| !present(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = "iproute2 util-linux coreutils chrony linuxptp";
    Err(format!("time-peers needs {}: apt-get install {packages}", missing.join(", ")).into())
}

/// A child process, killed when dropped, and by the kernel if this process dies first.
pub struct Process(Child);

impl Process {
    /// Starts a program in a namespace. What it prints goes to the file `log`.
    pub fn start<A: AsRef<OsStr>>(
        place: &Namespace,
        program: &str,
        arguments: impl IntoIterator<Item = A>,
        log: &Path,
    ) -> Result<Self, Failure> {
        let mut command = place.command("setpriv");
        command.args(["--pdeathsig", "KILL", program]).args(arguments);
        let log = File::create(log)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Process(command.spawn()?))
    }

    /// The processor time that it has used, in ns: the first figure of proc_pid_schedstat, of all its threads.
    pub fn cpu(&self) -> Result<u64, Failure> {
        let mut sum = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            sum += run_time(&task?.path())?;
        }
        Ok(sum)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The processor time of this process's own threads whose names begin so, in ns.
pub fn threads_cpu(name: &str) -> Result<u64, Failure> {
    let mut sum = None;
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.starts_with(name)) {
            sum = Some(sum.unwrap_or(0) + run_time(&task)?);
        }
    }
    Ok(sum.ok_or_else(|| format!("there is no thread {name}"))?)
}

fn run_time(task: &Path) -> Result<u64, Failure> {
    let text = std::fs::read_to_string(task.join("schedstat"))?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

/// Packets that the namespace's interface has received.
pub fn received(place: &Namespace) -> Result<u64, Failure> {
    let text = place.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let counters = text.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
    let packets = counters.and_then(|counters| counters.split_whitespace().nth(1));
    Ok(packets.ok_or("the namespace has no eth0")?.parse()?)
}

/// A client program that answers questions on its standard input.
pub struct Client {
    process: Process,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    /// Starts it in a namespace.
    pub fn start(place: &Namespace, program: &[&str]) -> Result<Self, Failure> {
        let mut command = place.command("setpriv");
        // Its answers come line by line.
        command.args(["--pdeathsig", "KILL", "stdbuf", "-oL"]).args(program);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(questions), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            unreachable!("both are pipes")
        };
        Ok(Client { process: Process(child), questions, answers: BufReader::new(answers) })
    }

    /// Asks, and reads until there is a line that `read` makes something of.
    pub fn ask<T>(&mut self, question: &str, mut read: impl FnMut(&str) -> Option<T>) -> Result<T, Failure> {
        writeln!(self.questions, "{question}")?;
        let mut line = String::new();
        while self.answers.read_line(&mut line)? > 0 {
            if let Some(answer) = read(line.trim()) {
                return Ok(answer);
            }
            line.clear();
        }
        Err(format!("the client of process {} ended", self.process.0.id()).into())
    }
}

/// Keeps every processor busy until it is dropped.
pub struct Load {
    _loops: Vec<Process>,
}

impl Load {
    /// Starts one endless loop for each processor.
    pub fn start() -> Result<Self, Failure> {
        let processors = std::thread::available_parallelism()?.get();
        let spin = || {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "sh", "-c", "while :; do :; done"]);
            Ok(Process(command.stdin(Stdio::null()).spawn()?))
        };
        Ok(Load { _loops: (0..processors).map(|_| spin()).collect::<Result<_, Failure>>()? })
    }
}
