//! vexctl on a mount, as a shell user works with it.

use std::path::Path;

use vexfs_tests::process;
use vexfs_tests::programs::{ours, tool};
use vexfs_tests::stage::Stage;

#[test]
fn vexctl_puts_searches_and_ingests() {
    let stage = Stage::vexfs(256);
    let mount = stage.mount();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/vexctl-on-mount.sh");
    let mut command = tool("bash");
    process::ok(command.arg(script).arg(ours("vexctl").get_program()).arg(mount.path()));
    mount.unmount();
}
