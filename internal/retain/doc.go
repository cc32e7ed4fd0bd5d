// Package retain decides which snapshots of a system are kept and which are
// forgotten: snapshots and a policy in, verdicts out, no I/O.
//
// Main types: [Policy] is how much is to be kept, with the meaning that restic
// gave each of its parts; [Decide] applies it; [Verdict] says of each snapshot
// whether it stays, and why.
//
// What a policy may spend is counted by signed times only where these can be
// true, so that whoever writes a burst of snapshots with false times expels no
// other (Decide). The package knows nothing of registries and removes nothing.
package retain
