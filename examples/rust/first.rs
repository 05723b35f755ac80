// The C library from Rust, without bindings.
//
//     rustc first.rs -L native=$(msharefs --libdir) -C link-arg=-Wl,-rpath,$(msharefs --libdir)
//     ./first /mnt/rust
//
use std::ffi::{c_int, c_void};
use std::fs::OpenOptions;
use std::io::{Error, Result};
use std::os::fd::AsRawFd;
use std::ptr;

#[link(name = "msharefs")]
extern "C" {
    fn mshare_map(fd: c_int, offset: i64, size: usize, prot: c_int, flags: c_int, object: c_int, from: i64) -> c_int;
    fn mshare_attach(fd: c_int, offset: i64, size: usize, addr: *mut c_void, flags: u32) -> *mut c_void;
    fn mshare_detach(addr: *mut c_void) -> c_int;
}

const SIZE: u64 = 2 << 20;
const PROT_READ_WRITE: c_int = 1 | 2;
const MAP_SHARED: c_int = 1;
const MAP_FIXED: c_int = 0x10;
const MAP_ANONYMOUS: c_int = 0x20;

/// An attached region; it is detached when it is dropped.
struct Attached {
    base: *mut u8,
    size: usize,
}

impl Attached {
    fn open(path: &str) -> Result<Attached> {
        let file = OpenOptions::new().read(true).write(true).create(true).open(path)?;
        file.set_len(SIZE)?;
        let fd = file.as_raw_fd();
        let flags = MAP_SHARED | MAP_FIXED | MAP_ANONYMOUS;
        if unsafe { mshare_map(fd, 0, SIZE as usize, PROT_READ_WRITE, flags, -1, 0) } != 0 {
            return Err(Error::last_os_error());
        }
        let base = unsafe { mshare_attach(fd, 0, 0, ptr::null_mut(), 0) };
        if base as isize == -1 {
            return Err(Error::last_os_error());
        }
        Ok(Attached { base: base.cast(), size: SIZE as usize })
    }

    fn bytes(&mut self) -> &mut [u8] {
        unsafe { std::slice::from_raw_parts_mut(self.base, self.size) }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        unsafe { mshare_detach(self.base.cast()) };
    }
}

fn main() -> Result<()> {
    let path = std::env::args().nth(1).expect("usage: first REGION");
    let mut region = Attached::open(&path)?;
    let text = b"hello from Rust";
    region.bytes()[..text.len()].copy_from_slice(text);
    println!("{}", String::from_utf8_lossy(&region.bytes()[..text.len()]));
    Ok(())
}
