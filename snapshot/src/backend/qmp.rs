//! A small blocking client of QEMU's monitor protocol (QMP): JSON, a message a line, over a Unix socket.
//!
//! QEMU serves one client per monitor at a time; the next one waits for its greeting until the first has left. A monitor
//! that hangs or dies costs its caller no more than the time limit it gave.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};
use timesync::clock::pace_now;
use timesync::time::Nanos;

/// The longest message that is taken; the longest that we ask for are lists of block nodes, of some kilobytes a disk.
const MAX_LINE: usize = 4 << 20;

/// Why a command was not executed, or nobody knows whether it was.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// There is no QEMU behind the socket.
    #[error("no QEMU answers at {}: {error}; is the virtual machine running?", .socket.display())]
    NotThere {
        /// The monitor's socket.
        socket: PathBuf,
        /// What connecting said.
        error: io::Error,
    },
    /// Something listens and says nothing.
    #[error(
        "the QEMU monitor {} does not greet: another program uses it, or QEMU hangs; give QEMU one more monitor, with -qmp unix:PATH,server=on,wait=off",
        .socket.display()
    )]
    Silent {
        /// The monitor's socket.
        socket: PathBuf,
    },
    /// QEMU says no. Nothing has changed then.
    #[error("QEMU refuses {command}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's class of the error, such as `GenericError`.
        class: String,
        /// QEMU's sentence.
        description: String,
    },
    /// The connection broke while a command was under way, or before.
    #[error("the connection to QEMU broke at {command}: {error}")]
    Broken {
        /// The command.
        command: String,
        /// What reading or writing said.
        error: io::Error,
    },
    /// No answer in time. The command may still be executed.
    #[error("QEMU did not answer {command} within {limit}")]
    Late {
        /// The command.
        command: String,
        /// The time limit.
        limit: Nanos,
    },
    /// This is no QMP.
    #[error("what answers is no QEMU monitor: {0}")]
    Protocol(&'static str),
}

impl QmpError {
    /// Whether nobody listens at the monitor's socket: then its QEMU does not run.
    pub fn is_not_there(&self) -> bool {
        let gone = [ErrorKind::NotFound, ErrorKind::ConnectionRefused];
        matches!(self, QmpError::NotThere { error, .. } if gone.contains(&error.kind()))
    }
}

/// A connection to a monitor, ready for commands.
///
/// After an error other than [`QmpError::Refused`] it is out of step, and every further command fails.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    /// What was read and is no whole line yet.
    unread: Vec<u8>,
    next_id: u64,
    resumes: u64,
    in_step: bool,
    /// Another process has read from this connection, maybe half a line.
    within_line: bool,
}

/// A message of QEMU's. Whatever else it holds is not asked for.
#[derive(Debug, Deserialize)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    event: Option<String>,
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

/// Why there is no line.
enum NoLine {
    Late,
    TooLong,
    Io(io::Error),
}

impl Qmp {
    /// Connects to a monitor and makes it ready, within `limit`.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn connect(socket: &Path, limit: Nanos) -> Result<Qmp, QmpError> {
        let not_there = |error| QmpError::NotThere { socket: socket.to_owned(), error };
        let stream = Socket::new(Domain::UNIX, Type::STREAM.cloexec(), None).map_err(not_there)?;
        // Connecting waits, too, while the queue of a monitor that is in use is full.
        stream.set_write_timeout(Some(limit.to_std())).map_err(not_there)?;
        match stream.connect(&SockAddr::unix(socket).map_err(not_there)?) {
            Err(error) if is_late(&error) => return Err(QmpError::Silent { socket: socket.to_owned() }),
            connected => connected.map_err(not_there)?,
        }
        let stream = UnixStream::from(OwnedFd::from(stream));
        let mut qmp =
            Qmp { stream, unread: Vec::new(), next_id: 0, resumes: 0, in_step: true, within_line: false };
        match qmp.line(pace_now() + limit) {
            Ok(line) if parse(&line)?.greeting.is_some() => {}
            Ok(_) => return Err(QmpError::Protocol("it does not begin with a greeting")),
            Err(NoLine::Late) => return Err(QmpError::Silent { socket: socket.to_owned() }),
            Err(NoLine::TooLong) => return Err(QmpError::Protocol("its greeting does not end")),
            Err(NoLine::Io(error)) => return Err(not_there(error)),
        }
        qmp.execute("qmp_capabilities", json!({}), limit)?;
        Ok(qmp)
    }

    /// The same connection for another process, which takes it with [`Qmp::adopt`]. QEMU executes what either sends in the
    /// order in which it was sent. Only one of the two may wait for an answer at a time.
    ///
    /// # Errors
    /// When there are no file descriptors left.
    pub fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.stream.try_clone()?.into())
    }

    /// A connection that another process or thread has made ready.
    pub fn adopt(connection: OwnedFd) -> Qmp {
        // Numbers of its own: the other's answers are passed over.
        let next_id = u64::from(std::process::id()) << 32;
        let stream = UnixStream::from(connection);
        Qmp { stream, unread: Vec::new(), next_id, resumes: 0, in_step: true, within_line: true }
    }

    /// Executes a command and returns its answer, within `limit`.
    ///
    /// # Errors
    /// [`QmpError`]. After [`QmpError::Late`] and [`QmpError::Broken`], QEMU may have executed the command, or still do so.
    pub fn execute(&mut self, command: &str, arguments: Value, limit: Nanos) -> Result<Value, QmpError> {
        if !self.in_step {
            return Err(QmpError::Broken {
                command: command.to_owned(),
                error: ErrorKind::BrokenPipe.into(),
            });
        }
        let sent = self.send(command, arguments, limit);
        let outcome = sent.and_then(|id| self.answer(id, command, limit));
        self.in_step = matches!(outcome, Ok(_) | Err(QmpError::Refused { .. }));
        outcome
    }

    /// How often the virtual machine was set running since this connection was made, by anybody, as of the last answer:
    /// QEMU sends its events in the order of its answers.
    pub fn resumes(&self) -> u64 {
        self.resumes
    }

    /// Sends a command and does not wait: its number is what [`Qmp::answer`] asks for. So that several can be under way.
    ///
    /// # Errors
    /// [`QmpError::Broken`], [`QmpError::Late`].
    pub(super) fn send(&mut self, command: &str, arguments: Value, limit: Nanos) -> Result<u64, QmpError> {
        let id = self.next_id;
        self.next_id += 1;
        let mut request = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        request.push('\n');
        let sent = self.stream.set_write_timeout(Some(limit.to_std()));
        match sent.and_then(|()| self.stream.write_all(request.as_bytes())) {
            Ok(()) => Ok(id),
            Err(error) if is_late(&error) => Err(QmpError::Late { command: command.to_owned(), limit }),
            Err(error) => Err(QmpError::Broken { command: command.to_owned(), error }),
        }
    }

    /// Waits for the answer to what was sent; answers to anything else are passed over. After [`QmpError::Late`] it may be
    /// waited for once more.
    ///
    /// # Errors
    /// [`QmpError`].
    pub(super) fn answer(&mut self, id: u64, command: &str, limit: Nanos) -> Result<Value, QmpError> {
        let deadline = pace_now() + limit;
        loop {
            let line = match self.line(deadline) {
                Ok(line) => line,
                Err(NoLine::Late) => return Err(QmpError::Late { command: command.to_owned(), limit }),
                Err(NoLine::TooLong) => return Err(QmpError::Protocol("an answer does not end")),
                Err(NoLine::Io(error)) => {
                    return Err(QmpError::Broken { command: command.to_owned(), error });
                }
            };
            let rest_of_line = std::mem::take(&mut self.within_line);
            match parse(&line) {
                Err(_) if rest_of_line => {}
                Err(error) => return Err(error),
                Ok(Message { event: Some(event), .. }) => {
                    if event == "RESUME" {
                        self.resumes += 1;
                    }
                }
                Ok(Message { id: Some(answered), .. }) if answered != id => {}
                Ok(Message { error: Some(Refusal { class, desc }), .. }) => {
                    return Err(QmpError::Refused { command: command.to_owned(), class, description: desc });
                }
                Ok(Message { answer: Some(answer), id: Some(_), .. }) => return Ok(answer),
                Ok(_) => return Err(QmpError::Protocol("a message is neither answer nor event")),
            }
        }
    }

    /// The next line, without its end.
    fn line(&mut self, deadline: Nanos) -> Result<Vec<u8>, NoLine> {
        let mut looked_at = 0;
        loop {
            if let Some(end) = self.unread[looked_at..].iter().position(|byte| *byte == b'\n') {
                let rest = self.unread.split_off(looked_at + end + 1);
                return Ok(std::mem::replace(&mut self.unread, rest));
            }
            looked_at = self.unread.len();
            if looked_at > MAX_LINE {
                return Err(NoLine::TooLong);
            }
            let left = deadline - pace_now();
            if left <= Nanos::ZERO {
                return Err(NoLine::Late);
            }
            let mut part = [0; 16 << 10];
            let read = self.stream.set_read_timeout(Some(left.to_std()));
            match read.and_then(|()| self.stream.read(&mut part)) {
                Ok(0) => return Err(NoLine::Io(ErrorKind::UnexpectedEof.into())),
                Ok(length) => self.unread.extend(&part[..length]),
                Err(error) if is_late(&error) => return Err(NoLine::Late),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(NoLine::Io(error)),
            }
        }
    }
}

fn parse(line: &[u8]) -> Result<Message, QmpError> {
    serde_json::from_slice(line).map_err(|_| QmpError::Protocol("it sends no JSON"))
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests;
