//! A TCP proxy on loopback that delays, stalls, or cuts.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// What happens to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They pass.
    Forward,
    /// They pass, each piece after this time.
    Delay(Duration),
    /// They wait until the mode changes.
    Stall,
    /// Connections are closed, new ones too.
    Cut,
}

/// A proxy; it ends when dropped.
pub struct FaultProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    mode: Mutex<Mode>,
    ended: AtomicBool,
}

impl FaultProxy {
    /// Forwards to `target` until told otherwise.
    pub fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared { mode: Mutex::new(Mode::Forward), ended: AtomicBool::new(false) });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.ended.load(Ordering::Relaxed) {
                    return;
                }
                if accepting.mode() != Mode::Cut
                    && let Ok(server) = TcpStream::connect(target)
                {
                    accepting.pump(&client, &server);
                    accepting.pump(&server, &client);
                }
            }
        });
        Self { address, shared }
    }

    /// Where to connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what happens, also on open connections.
    pub fn set(&self, mode: Mode) {
        *self.shared.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.set(Mode::Cut);
        self.shared.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn mode(&self) -> Mode {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pump(self: &Arc<Self>, from: &TcpStream, to: &TcpStream) {
        let (Ok(from), Ok(to), shared) = (from.try_clone(), to.try_clone(), Arc::clone(self)) else { return };
        thread::spawn(move || {
            let _ = shared.copy(&from, &to);
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
        });
    }

    fn copy(&self, mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
        from.set_read_timeout(Some(Duration::from_millis(20)))?;
        let mut buffer = [0; 16 * 1024];
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => 0,
                Err(error) => return Err(error),
            };
            loop {
                match self.mode() {
                    Mode::Cut => return Ok(()),
                    Mode::Stall => thread::sleep(Duration::from_millis(5)),
                    Mode::Delay(time) if read > 0 => break thread::sleep(time),
                    Mode::Forward | Mode::Delay(_) => break,
                }
            }
            to.write_all(&buffer[..read])?;
        }
    }
}
