// Package engine is Lifeboat's adapter to a container engine (Docker 20.10 and
// newer, podman's compatible API where it is the same). It describes what is
// there (Discover, Inventory, Container, Image), says where data lies on the
// host (HostFS, WritableLayer), and creates, starts, stops and removes.
//
// Main types: Engine is one connection; System is what Discover found of one
// system, in the vocabulary of package dr with what capture needs besides;
// HostFS maps paths of the engine's mount namespace to paths that this process
// can open.
//
// Sub-packages: compose reads Compose labels and files, containerdsnap speaks
// containerd's snapshot and content API, helper runs Lifeboat itself as a
// container, fake is an engine in memory behind the same HTTP API, enginetest
// is the conformance suite that the fake and real engines pass.
//
// The package does not read or write file trees, does not freeze, does not plan
// and holds no state beyond the connection. It is the only one that imports the
// Docker client.
//
// Errors wrap the sentinels of package dr: ErrNotFound (no such object),
// ErrHeld (a name, port or address is taken), ErrUsage (a malformed host or
// selection), ErrOutcomeUnknown (a changing call was sent and the connection
// broke before the answer: look before doing it again).
package engine
