// Package trunkline is the Go client: it publishes records and tells for each what became of it, reads them through
// iterators, and makes, lists and deletes topics. It speaks the line protocol and nothing else.
//
// A Client owns one link for publishing and administration; every Subscription and Reading opens a link of its own, so
// that a slow reader is slowed by its socket alone and a loop that reads may publish. Answers come in the order of the
// requests, so any number of publishes may be under way; what bounds them is WithInFlightBytes.
//
// When a link dies, what was sent and not answered has an unknown outcome and says so (ErrOutcomeUnknown): the client
// never repeats a publish by itself, and it does not connect again. Dial again, and read the log where it matters.
//
// All methods may be called concurrently, except where they say otherwise.
package trunkline
