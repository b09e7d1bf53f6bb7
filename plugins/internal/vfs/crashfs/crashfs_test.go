package crashfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/trunkline-mq/trunkline/plugins/internal/vfs"
	"github.com/trunkline-mq/trunkline/plugins/internal/vfs/crashfs"
)

const seeds = 200

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// create makes a file with synced content, under a name that is synced too.
func create(t *testing.T, fsys vfs.FS, name, content string) vfs.File {
	t.Helper()
	f, err := fsys.Open(name, vfs.Create)
	must(t, err)
	_, err = f.WriteAt([]byte(content), 0)
	must(t, err, f.Sync(), fsys.SyncDir(filepath.Dir(name)))
	return f
}

func read(t *testing.T, fsys vfs.FS, name string) string {
	t.Helper()
	f, err := fsys.Open(name, vfs.Read)
	must(t, err)
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	must(t, err)
	b := make([]byte, info.Size)
	if n, err := f.ReadAt(b, 0); n != len(b) || err != nil && !errors.Is(err, io.EOF) {
		t.Fatalf("read %s: %d of %d bytes, %v", name, n, len(b), err)
	}
	return string(b)
}

func has(fsys vfs.FS, name string) bool { _, err := fsys.Stat(name); return err == nil }

// tree lists every name with what it stands for.
func tree(t *testing.T, fsys vfs.FS, dir string) string {
	t.Helper()
	entries, err := fsys.ReadDir(dir)
	must(t, err)
	var b strings.Builder
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		if e.IsDir() {
			fmt.Fprintf(&b, "%s/\n%s", name, tree(t, fsys, name))
			continue
		}
		fmt.Fprintf(&b, "%s %q\n", name, read(t, fsys, name))
	}
	return b.String()
}

// outcomes crashes under many seeds and says what of came out, and how often.
func outcomes(fsys *crashfs.FS, look func(after *crashfs.FS) string) map[string]int {
	seen := map[string]int{}
	for seed := range uint64(seeds) {
		seen[look(fsys.Crash(seed))]++
	}
	return seen
}

func TestWhatWasSyncedSurvives(t *testing.T) {
	fsys := crashfs.New(crashfs.Options{Torn: true, Unordered: true})
	must(t, fsys.Mkdir("/d"), fsys.SyncDir("/"))
	f := create(t, fsys, "/d/f", strings.Repeat("a", 1300))
	_, err := f.WriteAt([]byte(strings.Repeat("b", 700)), 1000)
	must(t, err, f.Truncate(1600), f.Sync(), fsys.Rename("/d/f", "/d/g"), fsys.SyncDir("/d"))
	want := tree(t, fsys, "/")
	got := outcomes(fsys, func(after *crashfs.FS) string { return tree(t, after, "/") })
	if len(got) != 1 || got[want] != seeds {
		t.Errorf("want only\n%s\ngot %v", want, got)
	}
}

func TestNamesNeedTheirDirectory(t *testing.T) {
	fsys := crashfs.New(crashfs.Options{})
	f, err := fsys.Open("/f", vfs.Create)
	must(t, err)
	_, err = f.WriteAt([]byte("x"), 0)
	must(t, err, f.Sync())
	got := outcomes(fsys, func(after *crashfs.FS) string { return tree(t, after, "/") })
	if got[""] == 0 || got["/f \"x\"\n"] == 0 || len(got) != 2 {
		t.Errorf("a synced file whose name is not: %v", got)
	}
}

func TestSectorsSurviveEachByItself(t *testing.T) {
	fsys := crashfs.New(crashfs.Options{})
	f := create(t, fsys, "/f", strings.Repeat("a", 1536))
	_, err := f.WriteAt(bytes.Repeat([]byte("b"), 1024), 256)
	must(t, err)
	sectors := map[string]bool{}
	for content := range outcomes(fsys, func(after *crashfs.FS) string { return read(t, after, "/f") }) {
		if len(content) != 1536 {
			t.Fatalf("length %d", len(content))
		}
		sectors[compress(content)] = true
	}
	want := []string{"a1536", "a256b1024a256", "a256b256a1024", "a512b512a512", "a1024b256a256", "a256b768a512", "a512b768a256", "a256b256a512b256a256"}
	for _, w := range want {
		if !sectors[w] {
			t.Errorf("never seen: %s", w)
		}
		delete(sectors, w)
	}
	if len(sectors) > 0 {
		t.Errorf("torn within a sector: %v", sectors)
	}
}

// compress writes runs of a byte as the byte and how often it comes; zeros are 0x.
func compress(s string) string {
	var b strings.Builder
	for len(s) > 0 {
		n := len(s) - len(strings.TrimLeft(s, s[:1]))
		if s[0] == 0 {
			b.WriteString("0x")
		} else {
			b.WriteByte(s[0])
		}
		fmt.Fprint(&b, n)
		s = s[n:]
	}
	return b.String()
}

func TestTornSectorsAreAnOption(t *testing.T) {
	fsys := crashfs.New(crashfs.Options{Torn: true})
	f := create(t, fsys, "/f", strings.Repeat("a", 512))
	_, err := f.WriteAt(bytes.Repeat([]byte("b"), 512), 0)
	must(t, err)
	torn := 0
	for content := range outcomes(fsys, func(after *crashfs.FS) string { return read(t, after, "/f") }) {
		n := strings.Count(content, "b")
		if content != strings.Repeat("b", n)+strings.Repeat("a", 512-n) {
			t.Fatalf("not a beginning of the new bytes: %s", compress(content))
		}
		if n > 0 && n < 512 {
			torn++
		}
	}
	if torn == 0 {
		t.Error("no sector was ever torn")
	}
}

func TestALongerLengthMayHoldZeros(t *testing.T) {
	fsys := crashfs.New(crashfs.Options{})
	f := create(t, fsys, "/f", "a")
	_, err := f.WriteAt([]byte("b"), 1)
	must(t, err)
	got := outcomes(fsys, func(after *crashfs.FS) string { return read(t, after, "/f") })
	if got["a"] == 0 || got["ab"] == 0 || got["a\x00"] == 0 || len(got) != 3 {
		t.Errorf("outcomes %v", got)
	}
	if got := read(t, fsys.Crash(crashfs.Lengths), "/f"); got != "a\x00" {
		t.Errorf("lengths only: %q", got)
	}
}

func TestAnUnsyncedCutMayComeBack(t *testing.T) {
	fsys := crashfs.New(crashfs.Options{})
	f := create(t, fsys, "/f", "abcd")
	must(t, f.Truncate(2))
	got := outcomes(fsys, func(after *crashfs.FS) string { return read(t, after, "/f") })
	if got["ab"] == 0 || got["abcd"] == 0 || len(got) != 2 {
		t.Errorf("outcomes of a cut %v", got)
	}
	f = create(t, fsys.Crash(crashfs.Everything), "/g", "abcd")
	must(t, f.Truncate(2))
	_, err := f.WriteAt([]byte("x"), 3)
	must(t, err, f.Sync())
	b := make([]byte, 5)
	if n, err := f.ReadAt(b, 0); n != 4 || !errors.Is(err, io.EOF) || string(b[:4]) != "ab\x00x" {
		t.Errorf("cut and written again: %q, %v", b[:n], err)
	}
}

func TestNamesSurviveInOrder(t *testing.T) {
	for _, unordered := range []bool{false, true} {
		t.Run(fmt.Sprintf("unordered=%v", unordered), func(t *testing.T) {
			fsys := crashfs.New(crashfs.Options{Unordered: unordered})
			for i := range 3 {
				_, err := fsys.Open(fmt.Sprintf("/%d", i), vfs.Create)
				must(t, err)
			}
			must(t, fsys.Rename("/0", "/moved"))
			got := outcomes(fsys, func(after *crashfs.FS) string {
				var s string
				for _, name := range []string{"/0", "/1", "/2", "/moved"} {
					if has(after, name) {
						s += name
					}
				}
				return s
			})
			for _, inOrder := range []string{"", "/0", "/0/1", "/0/1/2", "/1/2/moved"} {
				if got[inOrder] == 0 {
					t.Errorf("never seen: %q", inOrder)
				}
				delete(got, inOrder)
			}
			if unordered != (got["/2"] > 0 && got["/moved"] > 0) {
				t.Errorf("out of order: %v", got)
			}
			for s := range got {
				if strings.Contains(s, "/0") && strings.Contains(s, "/moved") {
					t.Errorf("half a rename: %q", s)
				}
			}
		})
	}
}

func TestASyncTakesAlongWhatItDependsOn(t *testing.T) {
	fsys := crashfs.New(crashfs.Options{Unordered: true})
	must(t, fsys.Mkdir("/a"), fsys.Mkdir("/b"), fsys.Mkdir("/c"), fsys.SyncDir("/"))
	create(t, fsys, "/a/old", "1")
	for _, name := range []string{"/b/new", "/c/alone"} {
		_, err := fsys.Open(name, vfs.Create)
		must(t, err)
	}
	must(t, fsys.Rename("/a/old", "/b/old"), fsys.SyncDir("/a"))
	after := fsys.Crash(crashfs.Nothing)
	if has(after, "/a/old") || !has(after, "/b/old") {
		t.Error("half a rename was synced")
	}
	if !has(after, "/b/new") {
		t.Error("an earlier change of the other directory was not synced")
	}
	if has(after, "/c/alone") {
		t.Error("an unrelated directory was synced")
	}
}

func TestRemovedTreesMayComeBackInPart(t *testing.T) {
	fsys := crashfs.New(crashfs.Options{})
	must(t, fsys.Mkdir("/d"), fsys.SyncDir("/"))
	create(t, fsys, "/d/1", "x")
	create(t, fsys, "/d/2", "y")
	must(t, fsys.RemoveAll("/d"), fsys.RemoveAll("/d"), fsys.RemoveAll("/none/there"))
	if has(fsys, "/d") {
		t.Error("still there for processes")
	}
	got := outcomes(fsys, func(after *crashfs.FS) string { return tree(t, after, "/") })
	for _, want := range []string{"/d/\n/d/1 \"x\"\n/d/2 \"y\"\n", "/d/\n/d/2 \"y\"\n", "/d/\n", ""} {
		if got[want] == 0 {
			t.Errorf("never seen: %q", want)
		}
	}
	after := fsys.Crash(crashfs.Nothing)
	must(t, after.RemoveAll("/d"), after.SyncDir("/"))
	if got := tree(t, after.Crash(crashfs.Nothing), "/"); got != "" {
		t.Errorf("after a sync: %q", got)
	}
}

func TestTheMachineStopsAfterACall(t *testing.T) {
	fsys := crashfs.New(crashfs.Options{})
	f := create(t, fsys, "/f", "a") // create, write, sync, syncdir
	fsys.StopAfter(5)
	if fsys.Gone() {
		t.Fatal("gone too early")
	}
	if _, err := f.WriteAt([]byte("b"), 0); err != nil {
		t.Errorf("the last call: %v", err)
	}
	if !fsys.Gone() {
		t.Error("not gone")
	}
	_, openErr := fsys.Open("/f", vfs.Read)
	_, createErr := fsys.Open("/g", vfs.Create)
	_, reopenErr := fsys.Reopen(f)
	_, readErr := f.ReadAt(make([]byte, 1), 0)
	_, writeErr := f.WriteAt([]byte("c"), 0)
	_, fstatErr := f.Stat()
	_, statErr := fsys.Stat("/f")
	_, listErr := fsys.ReadDir("/")
	_, volumeErr := fsys.Volume("/")
	for i, err := range []error{
		openErr, createErr, reopenErr, readErr, writeErr, fstatErr, statErr, listErr, volumeErr, f.Sync(), f.Truncate(0),
		fsys.Mkdir("/d"), fsys.Rename("/f", "/g"), fsys.Replace("/f", "/g"), fsys.Remove("/f"), fsys.RemoveAll("/f"), fsys.SyncDir("/"),
		fsys.DropCache(f, 0), fsys.Probe(f), fsys.Allocate(f, 1),
	} {
		if !errors.Is(err, crashfs.ErrGone) {
			t.Errorf("call %d after the end: %v", i, err)
		}
	}
	if err := f.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	var got []string
	for _, c := range fsys.Calls() {
		got = append(got, c.String())
	}
	want := []string{"create /f", "write /f 0+1", "sync /f", "syncdir /", "write /f 0+1"}
	if !slices.Equal(got, want) {
		t.Errorf("calls %q, want %q", got, want)
	}
	after := fsys.Crash(crashfs.Nothing)
	if after.Gone() || read(t, after, "/f") != "a" {
		t.Error("the next boot does not work")
	}
	if _, err := after.Reopen(f); !errors.Is(err, syscall.EBADF) {
		t.Errorf("a file of before in the next boot: %v", err)
	}
}

func TestCrashEndsTheMachine(t *testing.T) {
	fsys := crashfs.New(crashfs.Options{})
	f := create(t, fsys, "/f", "a")
	after := fsys.Crash(crashfs.Nothing)
	if err := f.Sync(); !errors.Is(err, crashfs.ErrGone) {
		t.Errorf("sync after a crash: %v", err)
	}
	create(t, after, "/g", "b")
	if again := fsys.Crash(crashfs.Nothing); has(again, "/g") || read(t, again, "/f") != "a" {
		t.Error("another boot sees what this one did")
	}
}

func TestLyingSyncsAreAnswered(t *testing.T) {
	fsys := crashfs.New(crashfs.Options{Lie: func(c crashfs.Call) bool { return c.Path == "/liar" || c.Path == "/d" }})
	must(t, fsys.Mkdir("/d"), fsys.SyncDir("/"))
	create(t, fsys, "/liar", "x")
	create(t, fsys, "/honest", "y")
	create(t, fsys, "/d/f", "z")
	if got := tree(t, fsys.Crash(crashfs.Nothing), "/"); got != "/d/\n/honest \"y\"\n/liar \"\"\n" {
		t.Errorf("after lies: %q", got)
	}
}

func TestEveryCallCanBeTheLast(t *testing.T) {
	fsys := crashfs.New(crashfs.Options{})
	var stopped []*crashfs.FS
	var calls []crashfs.Call
	fsys.Watch(func(c crashfs.Call, s *crashfs.FS) {
		calls, stopped = append(calls, c), append(stopped, s)
	})
	must(t, fsys.Mkdir("/d"), fsys.SyncDir("/"))
	f := create(t, fsys, "/d/f", "a")
	_, err := f.WriteAt([]byte("b"), 1)
	must(t, err, f.Truncate(1), fsys.Rename("/d/f", "/g"), fsys.RemoveAll("/d"))
	if !slices.Equal(calls, fsys.Calls()) {
		t.Fatalf("watched %v, called %v", calls, fsys.Calls())
	}
	want := []struct{ nothing, everything string }{
		{"", "/d/\n"},
		{"/d/\n", "/d/\n"},
		{"/d/\n", "/d/\n/d/f \"\"\n"},
		{"/d/\n", "/d/\n/d/f \"a\"\n"},
		{"/d/\n", "/d/\n/d/f \"a\"\n"},
		{"/d/\n/d/f \"a\"\n", "/d/\n/d/f \"a\"\n"},
		{"/d/\n/d/f \"a\"\n", "/d/\n/d/f \"ab\"\n"},
		{"/d/\n/d/f \"a\"\n", "/d/\n/d/f \"a\"\n"},
		{"/d/\n/d/f \"a\"\n", "/d/\n/g \"a\"\n"},
		{"/d/\n/d/f \"a\"\n", "/g \"a\"\n"},
	}
	for i, s := range stopped {
		if !s.Gone() {
			t.Errorf("the copy after call %d goes on", i)
		}
		if got := tree(t, s.Crash(crashfs.Nothing), "/"); got != want[i].nothing {
			t.Errorf("after %s, nothing unsynced: %q, want %q", calls[i], got, want[i].nothing)
		}
		if got := tree(t, s.Crash(crashfs.Everything), "/"); got != want[i].everything {
			t.Errorf("after %s, everything: %q, want %q", calls[i], got, want[i].everything)
		}
	}
}

// TestLikeTheRealOne runs the same calls here and on the machine's file system and compares the answers.
func TestLikeTheRealOne(t *testing.T) {
	machines, ours := answers(t, vfs.OS(), t.TempDir()), answers(t, crashfs.New(crashfs.Options{}), "/")
	if machines != ours {
		t.Errorf("the machine's:\n%s\nhere:\n%s", machines, ours)
	}
}

func answers(t *testing.T, fsys vfs.FS, root string) string {
	var b strings.Builder
	at := func(name string) string { return filepath.Join(root, name) }
	tell := func(what string, err error) {
		kind := "fine"
		for _, e := range []error{
			fs.ErrExist, fs.ErrNotExist, fs.ErrClosed, io.EOF, syscall.ENOTEMPTY, syscall.ENOTDIR, syscall.EISDIR, syscall.EBADF, syscall.EINVAL,
		} {
			if errors.Is(err, e) {
				kind = e.Error()
			}
		}
		if kind == "fine" && err != nil {
			kind = err.Error()
		}
		fmt.Fprintln(&b, what, kind)
	}
	tell("mkdir", fsys.Mkdir(at("d")))
	tell("mkdir again", fsys.Mkdir(at("d")))
	tell("mkdir below nothing", fsys.Mkdir(at("no/d")))
	f, err := fsys.Open(at("d/f"), vfs.Create)
	tell("create", err)
	_, err = fsys.Open(at("d/f"), vfs.Create)
	tell("create again", err)
	_, err = fsys.Open(at("d/none"), vfs.Read)
	tell("open nothing", err)
	_, err = fsys.Open(at("d/f/x"), vfs.Read)
	tell("open below a file", err)
	_, err = fsys.Open(at("d"), vfs.Write)
	tell("open a directory to write", err)
	n, err := f.WriteAt([]byte("hello"), 3)
	tell(fmt.Sprint("write ", n), err)
	_, err = f.WriteAt([]byte("x"), -1)
	tell("write before the start", err)
	p := make([]byte, 10)
	n, err = f.ReadAt(p, 0)
	tell(fmt.Sprintf("read %q", p[:n]), err)
	n, err = f.ReadAt(p, 100)
	tell(fmt.Sprint("read beyond ", n), err)
	again, err := fsys.Reopen(f)
	tell("reopen", err)
	tell("truncate", again.Truncate(4))
	tell("truncate to nothing", again.Truncate(-1))
	r, err := fsys.Open(at("d/f"), vfs.Read)
	tell("open to read", err)
	_, err = r.WriteAt([]byte("x"), 0)
	tell("write what was opened to read", err)
	readOnly, err := fsys.Reopen(r)
	tell("reopen what was opened to read", err)
	_, err = readOnly.WriteAt([]byte("x"), 0)
	tell("write that", err)
	tell("sync", errors.Join(f.Sync(), fsys.SyncDir(at("d"))))
	tell("probe", fsys.Probe(f))
	tell("drop", fsys.DropCache(f, 0))
	tell("allocate", fsys.(vfs.Room).Allocate(f, 9))
	tell("allocate less", fsys.(vfs.Room).Allocate(f, 2))
	info, err := f.Stat()
	tell(fmt.Sprintf("stat %d %v %d", info.Size, info.Regular, info.Links), err)
	other, err := fsys.Stat(at("d/f"))
	tell(fmt.Sprintf("same %v", info == other), err)
	tell("remove a full directory", fsys.Remove(at("d")))
	tell("mkdir e", fsys.Mkdir(at("e")))
	tell("rename over", fsys.Rename(at("d/f"), at("e")))
	tell("rename nothing", fsys.Rename(at("none"), at("none2")))
	tell("replace a directory by a file", fsys.Replace(at("d/f"), at("e")))
	tell("replace a full directory", fsys.Replace(at("e"), at("d")))
	tell("rename", fsys.Rename(at("d/f"), at("e/f")))
	tell("replace an empty directory", fsys.Replace(at("e"), at("d")))
	tell("replace a file by a directory", fsys.Replace(at("d"), at("e/f")))
	tell("rename back", fsys.Rename(at("e/f"), at("d/f")))
	tell("remove an empty directory", fsys.Remove(at("e")))
	tell("replace by itself", fsys.Replace(at("d/f"), at("d/f")))
	tell("sync nothing", fsys.SyncDir(at("e")))
	tell("sync a file", fsys.SyncDir(at("d/f")))
	tell("list a file", func() error { _, err := fsys.ReadDir(at("d/f")); return err }())
	g, err := fsys.Open(at("d/g"), vfs.Create)
	tell("create g", err)
	tell("replace", fsys.Replace(at("d/g"), at("d/f")))
	info, err = f.Stat()
	tell(fmt.Sprintf("replaced file has %d names, %d bytes", info.Links, info.Size), err)
	entries, err := fsys.ReadDir(at("d"))
	for _, e := range entries {
		fi, infoErr := e.Info()
		tell(fmt.Sprintf("entry %s %v %d %v", e.Name(), e.IsDir(), fi.Size(), fi.Mode().IsRegular()), infoErr)
	}
	tell("list", err)
	tell("remove", fsys.Remove(at("d/f")))
	tell("remove again", fsys.Remove(at("d/f")))
	tell("close", errors.Join(f.Close(), g.Close(), r.Close(), again.Close(), readOnly.Close()))
	tell("close again", f.Close())
	tell("sync what is closed", f.Sync())
	volume, err := fsys.(vfs.Room).Volume(root)
	tell(fmt.Sprint("volume ", volume.Free > 0, volume.Volatile), err)
	return strings.ReplaceAll(b.String(), root+string(os.PathSeparator), "")
}
