import torch,sys,time; torch.set_num_threads(1)
from arlm_nb.vision.next_x_model import load_next_x
from arlm_nb.vision.next_x_sample import *
from arlm_nb.vision.next_x_exposure import exposure
from arlm_nb.vision.image_vae import load_vae
from arlm_nb.vision.shapes import *
vae=load_vae()
for m in sys.argv[1:]:
    model=load_next_x(m); t=time.time()
    y=torch.arange(300)%24
    for w in (1.0,1.5):
        out=generate_next_x(model,vae,y,steps=20,guidance=w)
        im=torch.stack([p.image for p in out]); r=scene_oracle(im); c=coverage(r)
        ok=[s[0].index//50==int(k) and bool(v) for s,k,v in zip(r.scenes,y,r.valid)]
        print(m,w,"valid",r.valid_rate,"right class",sum(ok)/300,c.distinct,c.places,f"{time.time()-t:.1f}s",flush=True)
    f=exposure(model,vae,repeats=8); print(f[f.entity==f.entity.max()][["context","sigma","error","low","high","n"]].round(3).to_string())
