//! The place of what happens to the node as a whole: the host's network namespace.

use crate::access::Setting;
use crate::place::{Place, from};

/// Inode, 0: the collector does not know it.
#[used]
#[unsafe(no_mangle)]
static NODE_NETNS: Setting<u32> = Setting::new(0);

#[used]
#[unsafe(no_mangle)]
static NODE_COOKIE: Setting<u64> = Setting::new(0);

#[inline(always)]
pub fn place() -> Place {
    Place {
        netns: NODE_NETNS.get(),
        from: from::NOTHING,
        cookie: NODE_COOKIE.get(),
        device: core::ptr::null(),
    }
}
