// Package freeze stops all containers of a system at one instant and makes
// sure that they go on again, whatever happens to Lifeboat meanwhile
// (invariants 4 and 5, ADR 0004).
//
// [Do] is the entry point: it starts the guardians, freezes a [Set], runs the
// caller's function, thaws, and tells whether the freeze held throughout. A
// [Set] is made by [NewSet] from containers: through their freezer cgroups
// where [Host] finds them (version 1, version 2 or both), else through the
// engine's pause call, a [Pauser]. [Refuse] tells beforehand which containers
// must not be frozen because Lifeboat depends on them. [Sweep] thaws what a
// freeze left behind when its process and both guardians were killed.
//
// A guardian is the binary itself, run again as `lifeboat guardian`; that
// command does nothing but call [GuardianMain]. The main function of every
// binary that calls [Do], test binaries included, must do so too, before it
// does anything else.
//
// The package does not talk to the container engine itself, does not choose
// what to freeze, does not write to files of the frozen containers and does not
// flush them: what is frozen together is consistent as after a crash. It sees
// neither containers that start while the set is frozen, nor another program
// that thaws a container and freezes it again in between.
package freeze
