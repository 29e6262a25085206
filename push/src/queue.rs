//! What waits to be sent. Full, it lets go of the oldest: what happens now is worth more than what happened then.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

#[derive(Debug)]
pub(crate) struct Queue<T> {
    room: usize,
    inner: Mutex<Inner<T>>,
    /// Wakes the one reader.
    came: Notify,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    pub(crate) fn new(room: usize) -> Self {
        Self {
            room: room.max(1),
            inner: Mutex::new(Inner {
                items: VecDeque::new(),
                closed: false,
            }),
            came: Notify::new(),
        }
    }

    /// What had to go for it, the oldest first. Closed, nothing is taken any more.
    pub(crate) fn push(&self, items: impl IntoIterator<Item = T>) -> Vec<T> {
        let mut gone = Vec::new();
        {
            let mut inner = self.inner.lock();
            for item in items {
                if inner.closed {
                    gone.push(item);
                    continue;
                }
                if inner.items.len() == self.room {
                    gone.extend(inner.items.pop_front());
                }
                inner.items.push_back(item);
            }
        }
        self.came.notify_one();
        gone
    }

    pub(crate) fn len(&self) -> usize {
        self.inner.lock().items.len()
    }

    /// The reader gets what is there, and then `None`.
    pub(crate) fn close(&self) {
        self.inner.lock().closed = true;
        self.came.notify_one();
    }

    /// The oldest, `most` of them: as soon as there are so many, or `linger` after the first was seen. `None`: closed and
    /// empty. One reader only.
    pub(crate) async fn take(&self, most: usize, linger: Duration) -> Option<Vec<T>> {
        let mut deadline = None;
        loop {
            {
                let mut inner = self.inner.lock();
                let over = deadline.is_some_and(|deadline| tokio::time::Instant::now() >= deadline);
                let Inner { items, closed } = &mut *inner;
                if items.len() >= most || !items.is_empty() && (over || *closed) {
                    let count = items.len().min(most);
                    return Some(items.drain(..count).collect());
                }
                if items.is_empty() && *closed {
                    return None;
                }
                if !items.is_empty() && deadline.is_none() {
                    deadline = Some(tokio::time::Instant::now() + linger);
                }
            }
            let came = self.came.notified();
            match deadline {
                Some(deadline) => tokio::select! {
                    () = came => {}
                    () = tokio::time::sleep_until(deadline) => {}
                },
                None => came.await,
            }
        }
    }

    pub(crate) fn drain(&self) -> Vec<T> {
        self.inner.lock().items.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_bounded_and_lets_go_of_the_oldest() {
        let queue = Queue::new(3);
        assert!(queue.push([1, 2]).is_empty());
        assert_eq!(queue.push([3, 4, 5]), [1, 2]);
        assert_eq!(queue.take(2, Duration::ZERO).await.unwrap(), [3, 4]);
        queue.close();
        assert_eq!(queue.push([6]), [6], "closed");
        assert_eq!(queue.take(2, Duration::from_secs(3600)).await.unwrap(), [5]);
        assert_eq!(queue.take(2, Duration::from_secs(3600)).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_waits_for_more_for_as_long_as_it_may() {
        let queue = std::sync::Arc::new(Queue::new(10));
        queue.push([1]);
        let taken = tokio::spawn({
            let queue = std::sync::Arc::clone(&queue);
            async move { queue.take(3, Duration::from_secs(5)).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        queue.push([2]);
        assert!(!taken.is_finished());
        assert_eq!(taken.await.unwrap().unwrap(), [1, 2]);
        queue.push([1, 2, 3, 4]);
        assert_eq!(queue.take(3, Duration::from_secs(3600)).await.unwrap(), [1, 2, 3]);
    }
}
