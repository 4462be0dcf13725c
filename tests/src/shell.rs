//! Typing into a shell, a command at a time.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};

use crate::tools::DEADLINE;

/// A shell that one types into.
#[derive(Debug)]
pub struct Shell {
    child: Child,
    stdin: ChildStdin,
    said: Receiver<String>,
}

impl Shell {
    /// Starts one: a command that reads what it is to do from its standard input.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Shell {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (sender, said) = mpsc::channel();
        std::thread::spawn(move || {
            // Until the shell ends, or nobody listens any more.
            let _ =
                BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line));
        });
        Shell { child, stdin, said }
    }

    /// Types a command in. Returns its status, and what it said.
    ///
    /// # Panics
    /// When it says nothing for a minute, or ends the shell.
    pub fn type_in(&mut self, command: &str) -> (i32, String) {
        const MARK: &str = "@@ends with ";
        // In the shell itself, so that what it exports stays.
        write!(self.stdin, "{{ {command}\n}} </dev/null 2>&1\necho \"{MARK}$?\"\n").unwrap();
        let mut said = String::new();
        loop {
            match self.said.recv_timeout(DEADLINE) {
                Ok(line) => match line.split_once(MARK) {
                    // What it said last may lack the end of a line.
                    Some((before, status)) => return (status.parse().unwrap(), said + before),
                    None => said += &(line + "\n"),
                },
                Err(why) => panic!("{command}: {why}; so far: {said}"),
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Errors mean that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
