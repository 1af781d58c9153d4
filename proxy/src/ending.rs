//! Ending what outstays its endpoint: each data thread's list of streams, websockets and passthrough connections, and the
//! orders to end some of them.
//!
//! A connection lives on one thread, so its entry is listed there, without a lock, and an order is carried out there.
//! It knows endpoints by key alone. What an end looks like to the client is not decided here: a relay is told, a
//! websocket's [`Conn`] is told, and a request finds that its endpoint says no more.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep_until};

use crate::conn::Conn;
use crate::endpoint::Class;

/// How one of them is ended.
#[derive(Debug)]
pub(crate) enum Way {
    /// A request: the connection to its endpoint is shut down, and the engine does the rest.
    Upstream { fd: RawFd, peer: Option<SocketAddr>, conn: Arc<Conn> },
    /// A websocket: its client's connection closes it at the next frame boundary.
    Websocket(Arc<Conn>),
    /// A passthrough connection: its relay stops.
    Relay(Arc<Notify>),
}

#[derive(Debug)]
struct Entry {
    serial: u64,
    /// Its endpoint's key.
    endpoint: u64,
    class: Class,
    way: Way,
    told: bool,
}

/// What one thread could end.
#[derive(Debug, Default)]
struct List {
    slots: Vec<Option<Entry>>,
    free: Vec<usize>,
    serial: u64,
}

thread_local! {
    static LIST: RefCell<List> = RefCell::default();
}

impl List {
    fn add(&mut self, endpoint: u64, class: Class, way: Way) -> Listed {
        self.serial += 1;
        let entry = Entry { serial: self.serial, endpoint, class, way, told: false };
        let slot = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(slot) {
            Some(place) => *place = Some(entry),
            None => self.slots.push(Some(entry)),
        }
        Listed { slot, serial: self.serial, list: std::ptr::from_ref(self).addr() }
    }

    fn get(&mut self, slot: usize, serial: u64) -> Option<&mut Entry> {
        self.slots.get_mut(slot)?.as_mut().filter(|entry| entry.serial == serial)
    }

    fn remove(&mut self, slot: usize, serial: u64) -> Option<Entry> {
        self.get(slot, serial)?;
        self.free.push(slot);
        self.slots[slot].take()
    }

    /// The slots of what an order is about: of all, or of those that have not been told.
    fn matching(&self, order: &Order, untold: bool) -> Vec<(usize, u64)> {
        let entries = self.slots.iter().enumerate().filter_map(|(slot, entry)| Some((slot, entry.as_ref()?)));
        let wanted = |entry: &Entry| {
            order.classes.contains(&entry.class) && order.endpoints.contains(&entry.endpoint) && !(untold && entry.told)
        };
        entries.filter(|(_, entry)| wanted(entry)).map(|(slot, entry)| (slot, entry.serial)).collect()
    }
}

/// A place in this thread's list; dropping it gives it up.
#[derive(Debug)]
#[must_use = "dropping it takes it off the list"]
pub(crate) struct Listed {
    slot: usize,
    serial: u64,
    /// Which thread's list that is.
    list: usize,
}

impl Listed {
    /// Lists what uses an endpoint.
    pub(crate) fn new(endpoint: u64, class: Class, way: Way) -> Self {
        LIST.with_borrow_mut(|list| list.add(endpoint, class, way))
    }

    /// Whether it has been told to end.
    pub(crate) fn is_told(&self) -> bool {
        LIST.with_borrow_mut(|list| {
            self.is_on(list) && list.get(self.slot, self.serial).is_some_and(|entry| entry.told)
        })
    }

    /// A runtime that is torn down may drop what it has on another thread, whose list is another one.
    fn is_on(&self, list: &List) -> bool {
        self.list == std::ptr::from_ref(list).addr()
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        // Dropped outside the borrow: what an entry holds may drop anything.
        let entry = LIST.try_with(|list| {
            let mut list = list.borrow_mut();
            if self.is_on(&list) { list.remove(self.slot, self.serial) } else { None }
        });
        drop(entry);
    }
}

/// What is to be ended.
#[derive(Clone, Debug)]
struct Order {
    /// Keys.
    endpoints: Arc<[u64]>,
    classes: Vec<Class>,
    /// The ends are spread evenly over this.
    spread: Duration,
    /// Those that were told and are still there, because their client takes nothing, lose their connection.
    force: bool,
}

/// Where orders are given: to every data thread.
#[derive(Debug, Default)]
pub(crate) struct Enders(Mutex<Vec<mpsc::UnboundedSender<Order>>>);

/// Where one data thread gets its orders.
pub(crate) struct Orders(mpsc::UnboundedReceiver<Order>);

impl Enders {
    /// Takes a data thread in.
    pub(crate) fn join(&self) -> Orders {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        Orders(receiver)
    }

    /// Has everything of these classes at these endpoints ended, spread evenly over a time.
    pub(crate) fn end(&self, endpoints: &[u64], classes: &[Class], spread: Duration) {
        self.give(Order { endpoints: endpoints.into(), classes: classes.to_vec(), spread, force: false });
    }

    /// Takes the connections of those that were told and are still there.
    pub(crate) fn force(&self, endpoints: &[u64], classes: &[Class]) {
        let (endpoints, classes) = (endpoints.into(), classes.to_vec());
        self.give(Order { endpoints, classes, spread: Duration::ZERO, force: true });
    }

    fn give(&self, order: Order) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|thread| thread.send(order.clone()).is_ok());
    }
}

/// Carries a thread's orders out, for as long as the thread lives.
pub(crate) async fn obey(mut orders: Orders) {
    while let Some(order) = orders.0.recv().await {
        tokio::spawn(carry_out(order));
    }
}

async fn carry_out(order: Order) {
    let began = Instant::now();
    let found = LIST.with_borrow(|list| list.matching(&order, !order.force));
    let count = u32::try_from(found.len()).unwrap_or(u32::MAX).max(1);
    for (n, (slot, serial)) in (0u32..).zip(found) {
        if !order.spread.is_zero() {
            sleep_until(began + order.spread.mul_f64(f64::from(n) / f64::from(count))).await;
        }
        tell(slot, serial, order.force);
    }
    // Those that have become long meanwhile: their endpoint is to go all the same.
    sleep_until(began + order.spread).await;
    for (slot, serial) in LIST.with_borrow(|list| list.matching(&order, true)) {
        tell(slot, serial, order.force);
    }
}

fn tell(slot: usize, serial: u64, force: bool) {
    LIST.with_borrow_mut(|list| {
        let Some(entry) = list.get(slot, serial) else { return };
        entry.told = true;
        match &entry.way {
            Way::Upstream { fd, peer, conn } => {
                shut(*fd, *peer);
                // An h2 client's connection carries others, too.
                if force && !conn.h2 {
                    shut(conn.fd, Some(conn.peer));
                }
            }
            Way::Websocket(conn) => {
                conn.tell_to_end();
                if force {
                    shut(conn.fd, Some(conn.peer));
                }
            }
            Way::Relay(told) => told.notify_one(),
        }
    });
}

/// Shuts a socket down both ways; whoever reads it finds its end.
///
/// `peer` is where it is connected to. A connection that many h2 requests share may go before they know, and its number
/// may be another's by then.
fn shut(fd: RawFd, peer: Option<SocketAddr>) {
    // SAFETY: an entry is taken off its list, on this very thread, before what owns the socket is dropped (see
    // `Request::disconnected`), and a number that is open no more is refused by the kernel.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let is_it = |peer: SocketAddr| {
        let found = rustix::net::getpeername(fd).ok().flatten();
        found
            .and_then(|found| SocketAddr::try_from(found).ok())
            .is_some_and(|found| (found.ip().to_canonical(), found.port()) == (peer.ip().to_canonical(), peer.port()))
    };
    if peer.is_none_or(is_it) {
        let _ = rustix::net::shutdown(fd, rustix::net::Shutdown::Both);
    }
}

#[cfg(test)]
mod tests;
