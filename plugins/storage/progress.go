package storage

import "context"

// Progress is how far an Open has come, in bytes scanned of bytes to scan. A Total of 0 says that it is not known yet.
type Progress struct {
	Done, Total int64
}

// progressKey is the context's key for who listens.
type progressKey struct{}

// WithProgress returns a context under which Open reports how far it has come. The function is called from the
// goroutine that works, often, and has to return at once.
func WithProgress(ctx context.Context, report func(Progress)) context.Context {
	return context.WithValue(ctx, progressKey{}, report)
}

// ReportProgress tells who listens, if anyone does. A store calls it at least once a second while it works: who waits
// for an Open gives up when nothing changes any more.
func ReportProgress(ctx context.Context, p Progress) {
	if report, ok := ctx.Value(progressKey{}).(func(Progress)); ok {
		report(p)
	}
}
