package lint

import (
	"fmt"
	"go/ast"
	"slices"
	"testing"
)

const (
	ruleFunction  = "a function has at most 100 lines"
	ruleFile      = "a file has at most 800 lines"
	rulePackage   = "a package has at most 15 files beside tests"
	ruleInterface = "an interface has at most 8 methods"
	ruleStruct    = "a struct has at most 20 fields"
	ruleParams    = "a function takes at most 4 parameters after ctx"
)

const (
	functionLinesMax    = 100
	fileLinesMax        = 800
	packageFilesMax     = 15
	interfaceMethodsMax = 8
	structFieldsMax     = 20
	parametersMax       = 4
)

func TestSizes(t *testing.T) {
	judge(t, []string{ruleFunction, ruleFile, rulePackage, ruleInterface, ruleStruct, ruleParams}, sizes(tree(t)))
}

func sizes(files []*source) []finding {
	var found []finding
	perPackage := map[string]int{}
	for _, s := range files {
		if s.generated {
			continue
		}
		limit := func(rule, name string, size, most int) {
			if size > most {
				place := s.path
				if name != "" {
					place += ":" + name
				}
				found = append(found, finding{rule, place, size, fmt.Sprintf("%d", size)})
			}
		}
		limit(ruleFile, "", s.lines, fileLinesMax)
		if !s.test {
			if perPackage[s.pkg]++; perPackage[s.pkg] == packageFilesMax+1 {
				found = append(found, finding{rulePackage, s.pkg, perPackage[s.pkg], "more than 15"})
			}
		}
		for _, d := range s.ast.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				limit(ruleFunction, funcName(d), s.line(d.End())-s.line(d.Pos())+1, functionLinesMax)
				limit(ruleParams, funcName(d), parameters(d.Type), parametersMax)
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if spec, ok := spec.(*ast.TypeSpec); ok {
						switch typ := spec.Type.(type) {
						case *ast.InterfaceType:
							limit(ruleInterface, spec.Name.Name, typ.Methods.NumFields(), interfaceMethodsMax)
						case *ast.StructType:
							limit(ruleStruct, spec.Name.Name, typ.Fields.NumFields(), structFieldsMax)
						}
					}
				}
			}
		}
	}
	return found
}

// funcName is "Name" or "Receiver.Name".
func funcName(d *ast.FuncDecl) string {
	if r := receiver(d); r != "" {
		return r + "." + d.Name.Name
	}
	return d.Name.Name
}

func receiver(d *ast.FuncDecl) string {
	if d.Recv == nil {
		return ""
	}
	typ := d.Recv.List[0].Type
	for {
		switch x := typ.(type) {
		case *ast.StarExpr:
			typ = x.X
		case *ast.IndexExpr:
			typ = x.X
		case *ast.IndexListExpr:
			typ = x.X
		case *ast.Ident:
			return x.Name
		default:
			return "?"
		}
	}
}

// parameters counts what a caller has to put in order, without a leading ctx or, in a helper of tests, the test itself.
func parameters(f *ast.FuncType) int {
	n := f.Params.NumFields()
	for _, field := range f.Params.List {
		typ := field.Type
		if star, ok := typ.(*ast.StarExpr); ok {
			typ = star.X
		}
		sel, ok := typ.(*ast.SelectorExpr)
		if !ok || !slices.Contains([]string{"Context", "T", "B", "TB"}, sel.Sel.Name) {
			break
		}
		n--
	}
	return n
}
