//! The kinds of effects, and the fail points that stand before and after each.
//!
//! A coordinator built with the feature `failpoints` reads the variable `FAILPOINTS`: with
//! `FAILPOINTS='coordinator.give-permit.after=return'` it ends at once, as if killed, when the first permit was written.

/// Makes the enum, the list of all its variants, and their names out of one text.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $name:literal,)*) => {
        /// Names the fail points of an effect.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// Each of them.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$kind,)*];

            #[cfg(any(test, feature = "failpoints"))]
            fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    /// A rollout's record is made.
    CreateRecord = "create-record",
    /// A record is written, and a node has a lease.
    GrantLease = "grant-lease",
    /// A record is written, and a node has a stop permit.
    GivePermit = "give-permit",
    /// A record is written, and the rollout has another owner.
    TakeOver = "take-over",
    /// A record is written, and the rollout has another phase.
    WritePhase = "write-phase",
    /// A record is written, and a node is a step further.
    WriteStep = "write-step",
    /// A record is written only to say that the owner lives.
    RenewRecord = "renew-record",
    /// A record is removed.
    RemoveRecord = "remove-record",
    /// A node is drained, or gets back what it had.
    SetAvailability = "set-availability",
    /// The agents' service is made.
    CreateService = "create-service",
    /// The agents' service is changed.
    UpdateService = "update-service",
    /// A service of agents is removed.
    RemoveService = "remove-service",
    /// The folder of bundles is made.
    MakeFolder = "make-folder",
    /// The folder of bundles is removed.
    RemoveFolder = "remove-folder",
    /// A file is made, without content.
    CreateFile = "create-file",
    /// A file is written to.
    WriteFile = "write-file",
    /// A file is synced.
    SyncFile = "sync-file",
    /// A bundle or the operator's socket gets its name.
    Rename = "rename",
    /// A file is removed.
    RemoveFile = "remove-file",
    /// A folder is synced.
    SyncFolder = "sync-folder",
    /// The operator's socket is made, under another name.
    BindSocket = "bind-socket",
    /// The operator's socket is for its owner alone.
    GuardSocket = "guard-socket",
}

/// On which side of an effect a fail point stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Side {
    /// Nothing of it is done.
    Before,
    /// It was tried, and may be done.
    After,
}

impl Kind {
    /// Stands on one side of the effect. With action `return` the process ends at once, as if killed.
    #[cfg(any(test, feature = "failpoints"))]
    pub(super) fn pass(self, side: Side) {
        fail::fail_point!(&self.point(side), |_| std::process::abort());
    }

    /// Stands on one side of the effect: there is nothing there.
    #[cfg(not(any(test, feature = "failpoints")))]
    pub(super) fn pass(self, _: Side) {}

    /// The point's name.
    #[cfg(any(test, feature = "failpoints"))]
    pub(crate) fn point(self, side: Side) -> String {
        let side = match side {
            Side::Before => "before",
            Side::After => "after",
        };
        format!("coordinator.{}.{side}", self.name())
    }
}
