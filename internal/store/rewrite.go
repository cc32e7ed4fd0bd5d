package store

import "context"

type rewriteKey struct{}

// Rewriting returns a context under which PutBlob and PutManifest send their
// bytes although the store says that it has them: what it has was found damaged.
// A store that cannot replace stored bytes answers as if it had; so the caller
// reads them again. Nothing is weakened: the bytes have to fit their digest, and a
// tag that names another digest stays where it is.
func Rewriting(ctx context.Context) context.Context {
	return context.WithValue(ctx, rewriteKey{}, true)
}

// IsRewriting reports whether ctx comes from Rewriting; implementations ask.
func IsRewriting(ctx context.Context) bool {
	on, _ := ctx.Value(rewriteKey{}).(bool)
	return on
}
