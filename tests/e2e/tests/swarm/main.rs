//! The end-to-end scenarios, on real swarms.
//!
//! They share two swarms and run in the order in which they are listed, one after the other: a later one may find the
//! engines that an earlier one installed, and says so if it does not. A scenario whose engine can't be had here is
//! ignored, loudly. What failed leaves its logs in `target/e2e-logs`.
//!
//! | variable | effect |
//! |---|---|
//! | `REQUEEN_E2E_PROFILE` | build the product on this machine with that cargo profile, not with the Dockerfile |
//! | `REQUEEN_E2E_KIND` | `machine`: the nodes are machines instead of containers, which takes several times as long |
//! | `REQUEEN_E2E_KEEP` | leave the swarms running at the end |
//! | `REQUEEN_E2E_LONG` | also what takes minutes: an engine that starts slowly, what others do to nodes, networks and hosts in the middle, a coordinator killed at each of its fail points, the product compiled twice, whose images are compared, and on machines power cuts by the dozen, the disk as a cut at each flush would have left it, bad weather, clocks that jump, and services behind IPVS |
//! | `REQUEEN_E2E_SEED`, `REQUEEN_E2E_CUTS` | with it: the instants at which the power is cut, and how many |

mod autolock;
mod containers;
mod copies;
mod cuts;
mod diag;
mod disk;
mod engines;
mod faults;
mod flushes;
mod handover;
mod hosts;
mod input;
mod killed;
mod large;
mod managers;
mod operator;
mod others;
mod power;
mod published;
mod second;
mod small;
mod strangers;
mod surroundings;
mod sysvinit;
mod undeploy;
mod upgrades;
mod verbs;
mod vips;
mod weather;
mod world;

use std::process::ExitCode;

use lab::figures::Figures;
use libtest_mimic::Arguments;
use world::World;

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    // Swarms and the machine's two processors are shared.
    args.test_threads = Some(1);
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).init();
    let world = World::new();
    let mut trials = vec![
        world.scenario("agents_are_on_every_node", large::agents_are_on_every_node),
        world.scenario("the_image_is_small", large::the_image_is_small),
        world.scenario("an_idle_agent_is_small", large::an_idle_agent_is_small),
        world.scenario("diag_tells_no_secrets", diag::diag_tells_no_secrets),
        world.scenario("plan_changes_nothing", input::plan_changes_nothing),
        world.scenario("bad_bundles_are_refused", input::bad_bundles_are_refused),
        world.scenario("a_downgrade_is_refused", input::a_downgrade_is_refused),
        world.scenario("wrong_words_are_refused", input::wrong_words_are_refused),
        world.scenario("a_server_without_its_swarm_ends", input::a_server_without_its_swarm_ends),
        world.scenario("a_second_rollout_is_refused", upgrades::a_second_rollout_is_refused),
        world.scenario("a_swarm_is_upgraded_under_load", upgrades::a_swarm_is_upgraded_under_load),
        world.scenario("the_same_bundle_again_is_nothing_to_do", upgrades::the_same_bundle_again_is_nothing_to_do),
        world.scenario("another_runc_is_an_upgrade_and_can_be_taken_back", upgrades::another_runc),
        world.scenario("an_engine_that_fails_is_rolled_back", upgrades::an_engine_that_fails_is_rolled_back),
        world.scenario("strangers_are_refused", strangers::strangers_are_refused),
        world.scenario("nodes_that_cannot_follow_are_named", small::nodes_that_cannot_follow_are_named),
        world.scenario("no_quorum_is_refused", small::no_quorum_is_refused),
        world.scenario("a_lone_manager_needs_a_word", small::a_lone_manager_needs_a_word),
        world.scenario("hosts_that_cannot_follow_are_refused", hosts::hosts_that_cannot_follow_are_refused),
        world.scenario("an_agent_killed_while_staging", faults::an_agent_killed_while_staging),
        world.scenario("an_executor_killed_before_the_permit", faults::an_executor_killed_before_the_permit),
        world.scenario("an_executor_killed_in_every_phase", faults::an_executor_killed_in_every_phase),
        world.scenario("package_managers_take_turns_with_upgrades", faults::package_managers_and_upgrades_take_turns),
        world.scenario("a_node_that_joins_in_the_middle", faults::a_node_that_joins_in_the_middle),
        world.scenario("agents_updated_in_the_middle", faults::agents_updated_in_the_middle),
        world.scenario("standalone_containers_come_back", containers::standalone_containers_come_back),
        world.scenario("a_full_disk_is_waited_for", disk::a_full_disk_is_waited_for),
        world.scenario("engines_that_fail_late_are_rolled_back", engines::engines_that_fail_late_are_rolled_back),
        world.scenario("power_fails_while_a_node_is_emptied", power::power_fails_while_a_node_is_emptied),
        world.scenario("power_fails_while_the_engine_is_replaced", power::power_fails_while_the_engine_is_replaced),
        world.scenario("a_reboot_while_the_engine_is_replaced", power::a_reboot_while_the_engine_is_replaced),
        world.scenario("an_autolocked_manager_is_unlocked", autolock::an_autolocked_manager_is_unlocked),
        world.scenario("a_node_renamed_in_the_middle_is_the_same", others::a_node_renamed_in_the_middle_is_the_same),
        world.scenario("a_manager_restarted_in_the_middle", others::a_manager_restarted_in_the_middle_is_waited_for),
        world.scenario("a_node_cut_off_after_its_stop", others::a_node_cut_off_after_its_stop_finishes_alone),
        world.scenario("a_node_with_sysvinit_is_upgraded", sysvinit::a_node_with_sysvinit_is_upgraded),
        // Without the agents of the scenarios before: a reader of the README has none.
        world.scenario("the_published_image_runs_from_a_registry", published::the_published_image_runs_from_a_registry),
        world.scenario("held_drained_while_the_coordinator_is_killed", upgrades::held_drained_while_killed),
        world.scenario("every_way_of_handing_over_works", handover::every_way_of_handing_over_works),
    ];
    let long = std::env::var_os("REQUEEN_E2E_LONG").is_some();
    if long {
        let run = engines::an_engine_that_starts_slowly_is_waited_for;
        trials.push(world.scenario("an_engine_that_starts_slowly_is_waited_for", run));
        let run = others::a_node_cut_off_for_a_while_gets_another_lease;
        trials.push(world.scenario("a_node_cut_off_for_a_while_gets_another_lease", run));
        trials.extend([
            world.scenario("other_managers_may_fail", managers::other_managers_may_fail_in_the_middle),
            world
                .scenario("a_node_that_others_change_is_not_stopped", others::a_node_that_others_change_is_not_stopped),
            world.scenario("a_node_removed_in_the_middle_is_told_of", others::a_node_removed_in_the_middle_is_told_of),
            world.scenario("a_node_cut_off_before_its_stop", others::a_node_cut_off_before_its_stop_is_released),
            world.scenario("a_managers_swarm_folder_is_copied", copies::a_managers_swarm_folder_is_copied),
            world.scenario("verbs_in_every_phase", verbs::verbs_in_every_phase),
            world.scenario("an_engine_that_others_start", surroundings::an_engine_that_others_start_is_the_one_it_says),
            world.scenario("a_start_limit_that_was_hit", surroundings::a_start_limit_that_was_hit_is_no_obstacle),
            world.scenario("a_containerd_that_fails", surroundings::a_containerd_that_fails_is_rolled_back),
            world.scenario(
                "a_file_replaced_after_the_staging",
                surroundings::a_file_replaced_after_the_staging_is_named,
            ),
            world.scenario("targets_that_are_links", surroundings::targets_that_are_links_are_kept),
        ]);
        let run = killed::a_coordinator_killed_at_every_fail_point;
        trials.push(world.scenario("a_coordinator_killed_at_every_fail_point", run));
    }
    trials.extend([
        // The last one on the small swarm: what it needs, the others have installed, and afterwards all of it is gone.
        world.scenario("undeploy_leaves_nothing", undeploy::undeploy_leaves_nothing),
        world.scenario("a_second_coordinator_takes_over", second::a_second_coordinator_takes_over),
        world.scenario("an_owner_that_is_cut_off_is_replaced", second::an_owner_that_is_cut_off_is_replaced),
    ]);
    if long {
        trials.push(world.scenario("two_builds_are_one_image", published::two_builds_are_one_image));
    }
    // On machines of their own: what a cut takes from a disk, it takes from no container's.
    if long {
        trials.push(world.scenario("a_slow_network_only_takes_longer", weather::a_slow_network_only_takes_longer));
        trials.push(world.scenario("clocks_that_jump_change_nothing", weather::clocks_that_jump_change_nothing));
        trials.push(world.scenario("power_cut_at_two_steps", cuts::power_cut_at_two_steps));
        trials.push(world.scenario("power_cut_at_every_step", cuts::power_cut_at_every_step));
        trials.push(world.scenario("power_cut_at_random_instants", cuts::power_cut_at_random_instants));
        trials.push(world.scenario("power_may_fail_at_every_flush", flushes::power_may_fail_at_every_flush));
        // The kernels of machines have IPVS, which the containers' does not.
        let run = vips::vip_and_ingress_are_served_throughout;
        trials.push(world.scenario("vip_and_ingress_are_served_throughout", run));
    }
    let conclusion = libtest_mimic::run(&args, trials);
    world.close();
    let figures = Figures {
        scenarios: conclusion.num_passed + conclusion.num_failed,
        scenarios_passed: conclusion.num_passed,
        ..Figures::default()
    };
    if let Err(error) = figures.note() {
        eprintln!("error: {error}");
        return ExitCode::FAILURE;
    }
    conclusion.exit_code()
}
