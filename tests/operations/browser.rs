//! Chromium without a display, by its DevTools protocol over a pipe: no port, no driver.

use crate::program;
use crate::support::DEADLINE;
use serde_json::{Value, json};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// Remembers the last answer of `/status` that the page got, and how often it asked.
const LISTEN: &str = "{ const ask = window.fetch; window.asked = 0; window.fetch = async (...what) => { \
     window.asked += 1; const answer = await ask(...what); answer.clone().json().then((status) => { window.answered = status; }, () => {}); return answer; }; }";

/// One tab.
pub(crate) struct Browser {
    _child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    _profile: tempfile::TempDir,
    session: String,
    calls: u64,
    /// What the console or the page complained about.
    pub(crate) complaints: Vec<String>,
}

impl Browser {
    pub(crate) async fn start() -> Browser {
        let profile = tempfile::tempdir().unwrap();
        let chromium = program("chromium");
        // Root may not have its sandbox. Commands come on descriptor 3, answers go to 4.
        let flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run \
             --disable-background-networking --remote-debugging-pipe about:blank";
        let script =
            format!("exec \"$0\" --user-data-dir=\"$1\" {flags} 3<&0 4>&1 >/dev/null 2>&1 </dev/null");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).arg(chromium).arg(profile.path()).env("HOME", profile.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (commands, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut browser = Browser {
            _child: child,
            commands,
            answers,
            _profile: profile,
            session: String::new(),
            calls: 0,
            complaints: Vec::new(),
        };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach).await;
        attached["sessionId"].as_str().unwrap().clone_into(&mut browser.session);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, json!({})).await;
        }
        browser.call("Page.addScriptToEvaluateOnNewDocument", json!({"source": LISTEN})).await;
        browser
    }

    pub(crate) async fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({"url": url})).await;
        assert_eq!(opened.get("errorText"), None, "{opened}");
        self.until("document.readyState === 'complete'").await;
    }

    /// The value of an expression.
    pub(crate) async fn value(&mut self, expression: &str) -> Value {
        let what = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let answer = self.call("Runtime.evaluate", what).await;
        assert_eq!(answer.get("exceptionDetails"), None, "{expression}: {answer}");
        answer["result"].get("value").cloned().unwrap_or_default()
    }

    /// The text of the element of that id.
    pub(crate) async fn text(&mut self, id: &str) -> String {
        let text = self.value(&format!("document.getElementById('{id}').innerText")).await;
        text.as_str().unwrap().to_owned()
    }

    /// Waits until the expression is true.
    pub(crate) async fn until(&mut self, expression: &str) {
        let waiting = async {
            while self.value(expression).await != true {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        let waited = timeout(DEADLINE, waiting).await;
        assert!(waited.is_ok(), "not in time: {expression} {:#?}", self.complaints);
    }

    /// As wide as a phone or a desk's screen, light or dark.
    pub(crate) async fn looks(&mut self, width: u32, height: u32, scheme: &str) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", features).await;
    }

    /// Keeps a picture of the whole page, where SCREENSHOTS names a folder.
    pub(crate) async fn picture(&mut self, name: &str) {
        use base64::Engine;
        let Some(folder) = std::env::var_os("SCREENSHOTS") else { return };
        let what = json!({"format": "png", "captureBeyondViewport": true});
        let picture = self.call("Page.captureScreenshot", what).await;
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        std::fs::write(std::path::Path::new(&folder).join(format!("{name}.png")), bytes).unwrap();
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut command = json!({"id": self.calls, "method": method, "params": params});
        if !self.session.is_empty() {
            command["sessionId"] = self.session.clone().into();
        }
        let mut command = command.to_string().into_bytes();
        command.push(0);
        self.commands.write_all(&command).await.unwrap();
        let answer = timeout(DEADLINE, self.answer()).await;
        let answer = answer.unwrap_or_else(|_| panic!("chromium does not answer {method}"));
        assert_eq!(answer.get("error"), None, "{method}: {answer}");
        answer["result"].clone()
    }

    async fn answer(&mut self) -> Value {
        loop {
            let mut message = Vec::new();
            let read = self.answers.read_until(0, &mut message).await.unwrap();
            assert!(read > 0, "chromium has ended");
            message.pop();
            let message: Value = serde_json::from_slice(&message).unwrap();
            if message["id"] == self.calls {
                return message;
            }
            let complains = match message["method"].as_str() {
                Some("Runtime.exceptionThrown") => true,
                Some("Runtime.consoleAPICalled") => message["params"]["type"] == "error",
                Some("Log.entryAdded") => {
                    ["error", "warning"].iter().any(|level| message["params"]["entry"]["level"] == *level)
                }
                _ => false,
            };
            if complains {
                self.complaints.push(message["params"].to_string());
            }
        }
    }
}
