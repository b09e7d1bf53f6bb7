package skeleton

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestASkeletonCarriesItsName(t *testing.T) {
	for _, kind := range Kinds() {
		for _, checkout := range []string{"", "/a/check out"} {
			dir := filepath.Join(t.TempDir(), "deep", "mine")
			p := Plugin{Kind: kind, Name: "my-own_1", Checkout: checkout}
			files, err := p.Write(dir)
			if err != nil || !slices.Contains(files, "main.go") {
				t.Fatal(files, err)
			}
			for _, name := range files {
				text, err := os.ReadFile(filepath.Join(dir, name))
				if err != nil || strings.Contains(string(text), "@NAME@") || strings.Contains(string(text), "@KIND@") || strings.Contains(string(text), "@REPLACE@") {
					t.Errorf("%s/%s: %v\n%s", kind, name, err, text)
				}
				if name == "main.go" && !strings.Contains(string(text), `= "my-own_1"`) {
					t.Errorf("%s is named otherwise:\n%s", kind, text)
				}
				if name == "go.mod" && strings.Contains(string(text), "\nreplace github.com/trunkline-mq/trunkline => \"/a/check out\"\n") != (checkout != "") {
					t.Errorf("with the checkout %q:\n%s", checkout, text)
				}
			}
			if _, err := p.Write(dir); !errors.Is(err, ErrNotEmpty) {
				t.Errorf("a second time: %v", err)
			}
		}
	}
}

func TestWhatThereIsNoSkeletonOf(t *testing.T) {
	for p, want := range map[Plugin]error{
		{Kind: "metadata", Name: "mine"}: ErrKind, {Kind: "storage/../partitioner", Name: "mine"}: ErrKind, {Kind: "", Name: "mine"}: ErrKind,
		{Kind: "storage", Name: ""}: ErrName, {Kind: "storage", Name: "../mine"}: ErrName, {Kind: "storage", Name: "_mine"}: ErrName,
		{Kind: "storage", Name: strings.Repeat("a", 25)}: ErrName, {Kind: "storage", Name: strings.Repeat("a", 24)}: nil,
	} {
		dir := filepath.Join(t.TempDir(), "new")
		if _, err := p.Write(dir); !errors.Is(err, want) || err == nil != (want == nil) {
			t.Errorf("%+v: %v", p, err)
		}
		if _, err := os.Stat(dir); want != nil && !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%+v left something: %v", p, err)
		}
	}
	if _, err := (&Plugin{Kind: "storage", Name: "mine"}).Write("skeleton.go/under"); err == nil {
		t.Error("written below a file")
	}
}
