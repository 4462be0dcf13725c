//! A real browser: headless Chromium, driven over WebDriver (W3C) by its own driver.
//!
//! WebDriver is JSON over HTTP, and our own client speaks that. What WebDriver has no words for (the size of a phone, a
//! dark screen) goes through Chromium's own protocol, which its driver passes on.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use snapshot::http::{Connector, ControlClient, ControlError};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::eventually;

/// Nothing that is asked of a browser takes longer.
const LIMIT: Duration = Duration::from_secs(60);

/// The key that moves the focus on.
pub const TAB: &str = "\u{e004}";
/// The key that presses a button and follows a link.
pub const ENTER: &str = "\u{e007}";
/// An arrow key.
pub const RIGHT: &str = "\u{e014}";

/// What a page is shown on.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    /// In CSS pixels.
    pub width: u32,
    /// Likewise.
    pub height: u32,
    /// Whether the user prefers dark.
    pub dark: bool,
}

/// A wide window.
pub const DESKTOP: Screen = Screen { width: 1440, height: 900, dark: false };
/// A narrow phone.
pub const PHONE: Screen = Screen { width: 360, height: 740, dark: false };

/// A browser with one page and a profile of its own. It is gone when this is dropped.
#[derive(Debug)]
pub struct Browser {
    driver: Child,
    client: ControlClient,
    session: Vec<String>,
    runtime: Runtime,
    _profile: TempDir,
}

impl Browser {
    /// Starts one. `names` maps host names to addresses for it alone, as `MAP name address`.
    ///
    /// # Panics
    /// When Chromium or its driver is missing.
    pub fn start(names: &str) -> Browser {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|why| panic!("chromedriver: {why}; `tests/run` installs the Debian packages"));
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.find_map(|line| {
            let line = line.ok()?;
            line.split_once("successfully on port ").map(|(_, port)| port.trim_end_matches('.').to_owned())
        });
        // Reads to the end, so that the driver never meets a closed pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let url = format!("http://127.0.0.1:{}", port.unwrap());
        let client = Connector::new(None, false).unwrap().connect("chromedriver", &url).unwrap();
        let profile = tempfile::Builder::new().prefix("coeval-browser-").tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut browser = Browser { driver, client, session: Vec::new(), runtime, _profile: profile };
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--lang=en-GB",
            &format!("--host-resolver-rules={names}"),
            &format!("--user-data-dir={}", browser._profile.path().display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": arguments},
        }}});
        let made = browser.ask(&["session"], Some(&wanted));
        browser.session = vec!["session".to_owned(), made["sessionId"].as_str().unwrap().to_owned()];
        browser.screen(DESKTOP);
        browser
    }

    /// Opens a page.
    pub fn open(&self, url: &str) {
        self.tell(&["url"], &json!({ "url": url }));
    }

    /// Shows it on another screen.
    pub fn screen(&self, Screen { width, height, dark }: Screen) {
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.chromium("Emulation.setDeviceMetricsOverride", &metrics);
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.chromium("Emulation.setEmulatedMedia", &media);
    }

    /// What a script returns.
    pub fn run(&self, script: &str) -> Value {
        self.tell(&["execute", "sync"], &json!({"script": script, "args": []}))
    }

    /// What a script that returns a promise comes to.
    pub fn run_to_its_end(&self, script: &str) -> Value {
        let script = format!(
            "const done = arguments[0]; (async () => {{ {script} }})().then(done, (why) => done(String(why)))"
        );
        self.tell(&["execute", "async"], &json!({"script": script, "args": []}))
    }

    /// Waits until an expression holds.
    ///
    /// # Panics
    /// When it never does.
    pub fn await_that(&self, expression: &str) {
        eventually(|| match self.run(&format!("return Boolean({expression})")) {
            Value::Bool(true) => Ok(()),
            _ => Err(format!("not yet: {expression}; the page says: {}", self.text("body"))),
        });
    }

    /// The text that an element shows.
    pub fn text(&self, selector: &str) -> String {
        let text = self.run(&format!("return document.querySelector({selector:?})?.innerText ?? ''"));
        text.as_str().unwrap().to_owned()
    }

    /// Presses keys, one after the other.
    pub fn press(&self, keys: &str) {
        let strokes: Vec<Value> = keys
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|what| json!({"type": what, "value": key.to_string()})))
            .collect();
        let actions = json!({"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]});
        self.tell(&["actions"], &actions);
    }

    /// Goes on with the tabulator until the focus is on an element that matches.
    ///
    /// # Panics
    /// When it comes by none.
    pub fn tab_to(&self, selector: &str) {
        let there = format!("return document.activeElement?.matches({selector:?}) ?? false");
        for _ in 0..100 {
            if self.run(&there) == true {
                return;
            }
            self.press(TAB);
        }
        panic!("the keyboard does not reach {selector}");
    }

    /// What the page and the browser complained about since the last call.
    pub fn complaints(&self) -> Vec<String> {
        let entries = self.tell(&["se", "log"], &json!({"type": "browser"}));
        let complaint = |entry: &Value| {
            let bad = ["SEVERE", "WARNING"].contains(&entry["level"].as_str().unwrap());
            bad.then(|| entry["message"].as_str().unwrap().to_owned())
        };
        entries.as_array().unwrap().iter().filter_map(complaint).collect()
    }

    /// A picture of what is on the screen, as WebP.
    pub fn picture(&self, file: &Path) {
        let shown = self.chromium("Page.captureScreenshot", &json!({"format": "webp", "quality": 84}));
        std::fs::write(file, STANDARD.decode(shown["data"].as_str().unwrap()).unwrap()).unwrap();
    }

    fn chromium(&self, command: &str, parameters: &Value) -> Value {
        self.tell(&["goog", "cdp", "execute"], &json!({"cmd": command, "params": parameters}))
    }

    fn tell(&self, command: &[&str], body: &Value) -> Value {
        self.ask(command, Some(body))
    }

    fn ask(&self, command: &[&str], body: Option<&Value>) -> Value {
        let answer = self.try_ask(command, body);
        answer.unwrap_or_else(|why| panic!("{command:?}: {why}"))
    }

    /// No body: the session's end.
    fn try_ask(&self, command: &[&str], body: Option<&Value>) -> Result<Value, ControlError> {
        let segments: Vec<&str> =
            self.session.iter().map(String::as_str).chain(command.iter().copied()).collect();
        let page = self.client.page(&segments);
        let mut answer: Value = self.runtime.block_on(async {
            match body {
                Some(body) => self.client.post(page, body, LIMIT).await,
                None => self.client.delete(page, LIMIT).await,
            }
        })?;
        Ok(answer["value"].take())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Chromium is the driver's child: it ends with the session.
        if !self.session.is_empty() {
            let _ = self.try_ask(&[], None);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
