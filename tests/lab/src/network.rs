//! The lab's network: a bridge of its own with a fixed address per node.

use std::net::Ipv4Addr;

use crate::command::{self, docker};
use crate::{Error, LABEL, Result, Role, cache};

/// Addresses that the swarm gives its overlay networks; apart from every lab's own.
pub(crate) const OVERLAY_POOL: &str = "10.202.0.0/16";

/// The network's name on the machine's engine.
pub(crate) fn name(lab: &str) -> String {
    format!("requeen-lab-{lab}")
}

/// Makes the lab's network in the first subnet that nothing on the machine uses, and returns the subnet's third byte.
pub(crate) fn create(lab: &str) -> Result<u8> {
    // Two labs that choose at once would choose the same subnet.
    let _lock = cache::lock("network")?;
    let listed = docker(&["network", "ls", "--quiet"])?;
    let mut args = vec!["network", "inspect", "--format", "{{json .IPAM.Config}}"];
    args.extend(listed.stdout.split_whitespace());
    let mut used = docker(&args)?.stdout;
    used.push_str(&command::run("ip", &["-4", "route", "show", "table", "all"])?.stdout);
    let third = free(&used).ok_or(Error::NoSubnet)?;
    let subnet = format!("10.201.{third}.0/24");
    let label = format!("{LABEL}={lab}");
    docker(&["network", "create", "--driver", "bridge", "--subnet", &subnet, "--label", &label, &name(lab)])?;
    Ok(third)
}

/// The first subnet that `used` does not mention.
fn free(used: &str) -> Option<u8> {
    (0..=u8::MAX).find(|third| !used.contains(&format!("10.201.{third}.")))
}

/// A node's address: managers from 11 on, workers from 101 on.
pub(crate) const fn address(third: u8, role: Role, number: u8) -> Ipv4Addr {
    let base = match role {
        Role::Manager => 10,
        Role::Worker => 100,
    };
    Ipv4Addr::new(10, 201, third, base + number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_subnet_is_passed_over() {
        assert_eq!(free(r#"[{"Subnet":"172.17.0.0/16"}]"#), Some(0));
        assert_eq!(free("10.201.0.0/24 dev br-1\n10.201.1.0/24 dev br-2\n10.201.20.0/24"), Some(2));
    }

    #[test]
    fn addresses_of_roles_never_meet() {
        assert_eq!(address(7, Role::Manager, 1), Ipv4Addr::new(10, 201, 7, 11));
        assert_eq!(address(7, Role::Manager, 90), Ipv4Addr::new(10, 201, 7, 100));
        assert_eq!(address(7, Role::Worker, 1), Ipv4Addr::new(10, 201, 7, 101));
    }
}
