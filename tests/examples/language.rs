//! The programs of each language's example, as `scripts/examples.sh` installs and builds them.

use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Language {
    Python,
    Node,
    Rust,
    Go,
    Java,
}

impl Language {
    /// Those whose client of NATS is there.
    pub(crate) const ALL: [Language; 4] = [Language::Python, Language::Node, Language::Rust, Language::Go];

    /// Reads orders from its standard input and places them.
    pub(crate) fn writer(self) -> Command {
        self.program("place_orders")
    }

    /// Has the effects of events, of all services. That of Java has them of the messages that it is handed.
    pub(crate) fn consumer(self) -> Command {
        self.program("consume")
    }

    fn program(self, name: &str) -> Command {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        match self {
            Language::Python => {
                let mut python = Command::new(installed(root.join(".examples/python/bin/python")));
                python.arg(root.join(format!("examples/python/{name}.py")));
                python
            }
            Language::Node => {
                installed(root.join("examples/node/node_modules/pg"));
                let mut node = Command::new("node");
                node.arg(root.join(format!("examples/node/{name}.js")));
                node
            }
            Language::Rust => Command::new(cargo_example(&format!("shop_{name}"))),
            Language::Go => Command::new(installed(root.join(".examples/go").join(name))),
            Language::Java => {
                let classes = installed(root.join(".examples/java"));
                let driver = installed(PathBuf::from("/usr/share/java/postgresql.jar"));
                let mut java = Command::new("java");
                java.arg("-cp").arg(format!("{}:{}", classes.display(), driver.display()));
                java.arg(if name == "consume" { "Deliver" } else { "PlaceOrders" });
                java
            }
        }
    }
}

fn installed(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "no {}: scripts/examples.sh installs it", path.display());
    path
}

/// Cargo builds the examples beside this test, unless it was told to build this test alone.
fn cargo_example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(path.exists(), "no {}: cargo build --locked --examples builds it", path.display());
    path
}
