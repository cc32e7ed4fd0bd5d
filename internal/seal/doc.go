// Package seal holds the cryptography of a repository: the repository secret
// and the keys derived from it, key records wrapped with age, sealed and signed
// records, sealed streams, and the signatures of hosts. Bytes in, bytes out; it
// does no I/O of its own (docs/format.md, sections Keys, Records, Index;
// docs/adr/0003-keys-and-signatures.md).
//
// Main types: [Secret] is what a repository's key opens; [Ring] seals, opens
// and hashes with it; [KeyRecord] carries it, wrapped; [HostKey] signs.
//
// The package does not decide which key record or which host is trusted: that
// is the repository's business (package repo).
//
// No type of this package prints, logs or marshals key material by accident:
// fields that hold keys are unexported and formatted as "[secret]".
package seal
