# From the data in ../shared/data to the weights of the package: every step in its order, each once.
#   make -f recipes/starter.mk                 (in a checkout that is installed with `pip install -e .`)
# Stopped, it goes on where it was.  Runs lie in runs/; weights and manifest of the package are exchanged on the way, and
# belong into one commit when the last step has scored them.  starter.toml and learn_torso.toml want a GPU (eight and five
# minutes; eleven and six hours on two cores), the rest, as reckoned, seven hours of two cores.  Pseudo-labels are those of the
# weights that are there at the start.

clseg ?= clseg

.PHONY: starter
.NOTPARALLEL:

starter: runs/scores.md

# on: what lets an interrupted run go on.  ship: its weights take their place in the package.
on = $(if $(wildcard runs/$(1)/recipe.json),--resume)
ship = $(clseg) export runs/$(1) --into clseg/data/starter --manifest weights_manifest.json --sources package:data/starter/ && touch runs/$(1)/shipped

runs/bodypart/weights/bodypart.safetensors:
	$(clseg) bodypart train recipes/bodypart.toml --run runs/bodypart $(call on,bodypart)

runs/pseudo/summary.csv:
	$(clseg) -i recipes/pseudo_scans.csv -o runs/pseudo --stats --resume

runs/starter/shipped: runs/bodypart/weights/bodypart.safetensors runs/pseudo/summary.csv
	$(clseg) train recipes/starter.toml --run runs/starter $(call on,starter)
	$(call ship,starter)

# One step of new decoders, or of one that is there: its name, the command without recipe and run, the recipe, the step before.
# What it lists for its user stays in a folder of its own: the next one finds the package's weights and nothing else.
define step
runs/$(1)/shipped: runs/$(4)/shipped
	CLSEG_HOME=runs/$(1)/home $$(clseg) $(2) recipes/$(3).toml --run runs/$(1) $$(call on,$(1))
	$$(call ship,$(1))
endef
learn = $(eval $(call step,$(1),learn,$(1),$(2)))
update = $(eval $(call step,$(1),update,$(1),$(2)))
prune = $(eval $(call step,prune_$(1),prune starter $(1) --recipe,$(2),$(3)))

$(call learn,learn_torso,starter)
$(call learn,learn_aorta,learn_torso)
$(call update,finish_ribs,learn_aorta)
$(call update,finish_abdominal_details,finish_ribs)
$(call update,finish_heart_vessels,finish_abdominal_details)
$(call update,refine_mandible_parotids,finish_heart_vessels)
$(call update,refine_neuraxis,refine_mandible_parotids)
$(call prune,neuraxis,prune_neck,refine_neuraxis)
$(call update,refine_cord,prune_neuraxis)
$(call prune,mandible_parotids,prune_neck,refine_cord)
$(call update,finish_mandible_parotids,prune_mandible_parotids)
$(call prune,larynx_esophagus,prune_neck,finish_mandible_parotids)
$(call prune,body,prune_torso,prune_larynx_esophagus)
$(call prune,lungs,prune_torso,prune_body)
$(call prune,trachea,prune_torso,prune_lungs)
$(call prune,skeleton,prune_skeleton,prune_trachea)
$(call prune,abdominal_organs,prune_abdomen,prune_skeleton)
$(call prune,pelvis_and_spine,prune_abdomen,prune_abdominal_organs)
$(call prune,gluteal_muscles,prune_abdomen,prune_pelvis_and_spine)

runs/scores.md: runs/prune_gluteal_muscles/shipped
	$(clseg) evaluate --recipe recipes/starter.toml --split val -o $@
