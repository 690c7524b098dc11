//! nginx and sshd as the guest runs them: their programs, and the few files that they ask for.

use anyhow::Result;

use super::{Login, software::Software};
use crate::boot::Archive;

/// sshd asks for a user of its name, nginx for one without rights.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    sshd:x:100:65534::/run/sshd:/bin/false\n\
    nobody:x:65534:65534::/:/bin/false\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\ntty:x:5:\n";
const NGINX: &str = "load_module /usr/lib/nginx/modules/ngx_stream_module.so; user nobody nogroup; worker_processes 2; error_log /dev/console warn; pid /run/nginx.pid;\n\
    events { }\n\
    http { access_log off; sendfile on; server { listen 80; root /www; } }\n\
    stream { server { listen 7000 udp; return $remote_addr; } }\n";
/// The defaults of OpenSSH, but for the paths and what asks for more than a key.
const SSHD: &str = "HostKey /etc/ssh/host_key\nPidFile none\nUsePAM no\nPasswordAuthentication no\n\
    KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n";

/// Adds both servers, and what lets `login` in.
pub(super) fn install(archive: &mut Archive, login: &Login) -> Result<()> {
    let software = Software::find()?;
    for program in ["usr/sbin/nginx", "usr/lib/nginx/modules/ngx_stream_module.so", "usr/sbin/sshd"] {
        software.install(archive, program)?;
    }
    // From OpenSSH 9.8 on, a session is a program of its own.
    software.install_all(archive, "usr/lib/openssh", "sshd-")?;
    for (path, mode, content) in [
        ("etc/passwd", 0o644, PASSWD),
        ("etc/group", 0o644, GROUP),
        ("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\n"),
        ("etc/nginx/nginx.conf", 0o644, NGINX),
        ("etc/ssh/sshd_config", 0o644, SSHD),
        ("etc/ssh/host_key", 0o600, &login.host_key),
        ("root/.ssh/authorized_keys", 0o600, &login.authorized_key),
    ] {
        archive.file(path, mode, content.as_bytes());
    }
    // Where sshd's processes without rights are locked in, and where nginx keeps bodies of requests and its first log.
    for folder in ["run/sshd", "var/lib/nginx", "var/log/nginx"] {
        archive.folder(folder);
    }
    Ok(())
}
