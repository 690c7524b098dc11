//! The packages: what is in them, and how they live on distributions' own systems, in QEMU with systemd as process 1.

mod files;
mod full;
mod host;
mod life;
